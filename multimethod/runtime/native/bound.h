// Functions for Python that cost next to nothing to call: pybind11's way takes as long as all the
// rest of a call of a small method does.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <memory>
#include <new>
#include <span>

namespace mmpack {

/// A function's positional arguments, borrowed.
using Arguments = std::span<PyObject* const>;

/// `function(State&, Arguments)` as Python calls it, with a State that lives as long as it does. It
/// returns a new reference, and raises as functions do that pybind11 wraps.
template <auto function, typename State>
pybind11::object bound(const char* name, std::shared_ptr<State> state) {
  using Held = std::shared_ptr<State>;
  const auto call = [](PyObject* self, PyObject* const* args, Py_ssize_t count) -> PyObject* {
    try {
      State& held = **static_cast<Held*>(PyCapsule_GetPointer(self, nullptr));
      return function(held, Arguments(args, static_cast<size_t>(count)));
    } catch (pybind11::error_already_set& error) {
      error.restore();
    } catch (const pybind11::builtin_exception& error) {
      error.set_error();
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    } catch (...) {
      PyErr_SetString(PyExc_RuntimeError, "an exception of an unknown kind");
    }
    return nullptr;
  };
  using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
  static PyMethodDef definition{
      name,
      reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(static_cast<Fast>(call))),
      METH_FASTCALL,
      nullptr};
  const pybind11::capsule self(
      new Held(std::move(state)), [](void* held) { delete static_cast<Held*>(held); });
  auto made = pybind11::reinterpret_steal<pybind11::object>(
      PyCFunction_NewEx(&definition, self.ptr(), nullptr));
  if (!made) {
    throw pybind11::error_already_set();
  }
  return made;
}

}  // namespace mmpack
