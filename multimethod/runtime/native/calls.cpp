#include "calls.h"

#include <array>
#include <cstddef>
#include <memory_resource>
#include <optional>
#include <string>
#include <vector>

#include "tensors.h"

namespace py = pybind11;

namespace mmpack {
namespace {

/// Items of a tuple or list, as long as nobody changes it.
Arguments items(PyObject* sequence, const char* name) {
  if (!PyTuple_Check(sequence) && !PyList_Check(sequence)) {
    throw py::type_error(
        std::string(name) + ": expected a tuple or list, got " + Py_TYPE(sequence)->tp_name);
  }
  return {PySequence_Fast_ITEMS(sequence),
          static_cast<size_t>(PySequence_Fast_GET_SIZE(sequence))};
}

Input input_from(PyObject* value) {
  if (is_tensor(value)) {
    return view(value);
  }
  if (value == Py_None) {
    return std::monostate();
  }
  if (PyBool_Check(value)) {
    return value == Py_True;
  }
  if (PyLong_Check(value)) {
    const int64_t whole = PyLong_AsLongLong(value);
    if (whole == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      throw Failure("an integer does not fit 64 bits");
    }
    return whole;
  }
  if (PyFloat_Check(value)) {
    return PyFloat_AS_DOUBLE(value);
  }
  throw Failure(
      std::string("Unsupported python type ") + Py_TYPE(value)->tp_name +
      ". Ensure that inputs are passed as a flat list of tensors.");
}

/// `given`: what the caller gave for it, or None.
PyObject* output_to(Output& output, PyObject* given) {
  if (Fresh* made = std::get_if<Fresh>(&output)) {
    return made->wrap();
  }
  if (std::get_if<Written>(&output) != nullptr) {
    return Py_NewRef(given);
  }
  if (const int64_t* whole = std::get_if<int64_t>(&output)) {
    return PyLong_FromLongLong(*whole);
  }
  if (const double* number = std::get_if<double>(&output)) {
    return PyFloat_FromDouble(*number);
  }
  if (const bool* flag = std::get_if<bool>(&output)) {
    return PyBool_FromLong(*flag ? 1 : 0);
  }
  if (const std::string* text = std::get_if<std::string>(&output)) {
    return PyUnicode_FromStringAndSize(text->data(), static_cast<Py_ssize_t>(text->size()));
  }
  return Py_NewRef(Py_None);
}

Arguments only(Arguments arguments) {
  if (arguments.size() != 1) {
    throw py::type_error("expected inputs");
  }
  return items(arguments[0], "inputs");
}

}  // namespace

PyObject* known(Looks& looks, Arguments arguments) {
  return PyBool_FromLong(looks.known(only(arguments)) ? 1 : 0);
}

PyObject* remember(Looks& looks, Arguments arguments) {
  looks.remember(only(arguments));
  return Py_NewRef(Py_None);
}

PyObject* run(Method& method, Arguments arguments) {
  if (arguments.empty() || arguments.size() > 2) {
    throw py::type_error("expected inputs, and perhaps out");
  }
  // Room for most calls' inputs and outputs; more go to the heap.
  std::array<std::byte, 2048> room;
  std::pmr::monotonic_buffer_resource memory(room.data(), room.size());

  const Arguments inputs_given = items(arguments[0], "inputs");
  std::pmr::vector<Input> inputs(&memory);
  inputs.reserve(inputs_given.size());
  for (PyObject* value : inputs_given) {
    inputs.push_back(input_from(value));
  }
  Arguments places;
  std::pmr::vector<std::optional<View>> given(&memory);
  if (arguments.size() == 2 && arguments[1] != Py_None) {
    places = items(arguments[1], "out");
    given.reserve(places.size());
    for (PyObject* place : places) {
      given.push_back(is_tensor(place) ? std::optional(view(place)) : std::nullopt);
    }
  }
  std::pmr::vector<Output> outputs(method.outputs(), &memory);
  {
    const py::gil_scoped_release released;
    method.run(inputs, given, outputs);
  }
  py::list results(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    PyObject* value = output_to(outputs[i], i < places.size() ? places[i] : Py_None);
    if (value == nullptr) {
      throw py::error_already_set();
    }
    PyList_SET_ITEM(results.ptr(), static_cast<Py_ssize_t>(i), value);
  }
  return results.release().ptr();
}

}  // namespace mmpack
