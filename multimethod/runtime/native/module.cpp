// The engine as Python sees it: programs, their methods, and locks that methods share.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bound.h"
#include "calls.h"
#include "graph.h"
#include "log.h"
#include "looks.h"
#include "method.h"
#include "tensors.h"

namespace py = pybind11;

namespace mmpack {
namespace {

using PlainRows = std::tuple<size_t, size_t, int64_t, int64_t>;  // tensor, axis, start, length
using PlainResult = std::pair<size_t, size_t>;                    // call, output
using PlainCall = std::tuple<
    std::optional<size_t>,                              // method
    size_t,                                             // lane
    std::vector<size_t>,                                // before
    std::vector<std::variant<PlainRows, PlainResult>>,  // inputs
    std::vector<std::pair<size_t, PlainRows>>>;         // copies: output, where to

Rows rows_from(const PlainRows& rows) {
  const auto& [tensor, axis, start, length] = rows;
  return {tensor, axis, start, length};
}

Graph graph_from(const std::vector<PlainCall>& plain) {
  std::vector<Call> calls;
  calls.reserve(plain.size());
  for (const auto& [method, lane, before, inputs, copies] : plain) {
    Call& call = calls.emplace_back(Call{method.value_or(Call::kNothing), lane, before, {}, {}});
    for (const auto& input : inputs) {
      if (const auto* result = std::get_if<PlainResult>(&input)) {
        call.inputs.push_back(Result{result->first, result->second});
      } else {
        call.inputs.push_back(rows_from(std::get<PlainRows>(input)));
      }
    }
    for (const auto& [output, rows] : copies) {
      call.copies.push_back({output, rows_from(rows)});
    }
  }
  return Graph(std::move(calls));
}

std::vector<std::tuple<size_t, size_t, double, double>> run_graph(
    const Graph& graph,
    const std::vector<std::shared_ptr<Method>>& methods,
    const py::list& tensors,
    std::vector<size_t> ranks,
    bool waits,
    const std::vector<size_t>& workers,
    const std::vector<int64_t>& delays) {
  std::vector<Strided> table;
  for (const py::handle& tensor : tensors) {
    const View seen = view(tensor.ptr());
    table.push_back(
        {static_cast<uint8_t*>(seen.data), seen.sizes, strides(tensor.ptr()), seen.dtype});
  }
  bool interrupted = false;
  const auto ask = [&] {
    const py::gil_scoped_acquire held;
    interrupted = interrupted || PyErr_CheckSignals() != 0;
    return interrupted;
  };
  std::vector<Ran> ran;
  try {
    const py::gil_scoped_release released;
    ran = graph.run(methods, table, Order{std::move(ranks), waits}, workers, delays, ask);
  } catch (const CallFailed&) {
    if (!interrupted) {
      throw;
    }
  }
  if (interrupted) {
    throw py::error_already_set();
  }
  std::vector<std::tuple<size_t, size_t, double, double>> spans;
  spans.reserve(ran.size());
  for (const Ran& one : ran) {
    spans.emplace_back(one.call, one.worker, one.begin, one.end);
  }
  return spans;
}

}  // namespace
}  // namespace mmpack

PYBIND11_MODULE(mmpack_native, module) {
  using namespace mmpack;

  py::class_<std::mutex, std::shared_ptr<std::mutex>>(module, "Lock").def(py::init<>());

  py::class_<Program, std::shared_ptr<Program>>(module, "Program")
      // Told apart by name: pybind11 takes bytes for text.
      .def_static(
          "from_file",
          [](const std::string& path, const std::string& outside) {
            return std::make_shared<Program>(path, outside);
          },
          py::arg("path"),
          py::arg("outside"))
      .def_static(
          "from_bytes",
          [](const py::bytes& data, const std::string& outside) {
            char* start = nullptr;
            Py_ssize_t size = 0;
            if (PyBytes_AsStringAndSize(data.ptr(), &start, &size) != 0) {
              throw py::error_already_set();
            }
            return std::make_shared<Program>(start, static_cast<size_t>(size), outside);
          },
          py::arg("data"),
          py::arg("outside"));

  py::class_<Method, std::shared_ptr<Method>>(module, "Method")
      .def(
          py::init([](std::shared_ptr<Program> program,
                      const std::string& name,
                      std::vector<std::shared_ptr<std::mutex>> locks,
                      bool one_thread,
                      std::string weights) {
            return std::make_shared<Method>(
                std::move(program),
                name,
                std::move(locks),
                Options{one_thread, std::move(weights)});
          }),
          py::arg("program"),
          py::arg("name"),
          py::arg("locks"),
          py::arg("one_thread"),
          py::arg("weights"))
      .def_property_readonly(
          "run",
          [](std::shared_ptr<Method> method) { return bound<&run>("run", std::move(method)); })
      .def_property_readonly("rows", &Method::rows)
      .def("addresses", &Method::addresses)
      .def("unload", &Method::unload, py::call_guard<py::gil_scoped_release>());

  py::class_<Graph>(module, "Graph")
      .def(py::init(&graph_from), py::arg("calls"))
      .def(
          "run",
          &run_graph,
          py::arg("methods"),
          py::arg("tensors"),
          py::arg("ranks"),
          py::arg("waits"),
          py::arg("workers"),
          py::arg("delays"));

  module.def(
      "looks",
      [](size_t most) {
        const auto looks = std::make_shared<Looks>(most);
        return py::make_tuple(bound<&known>("known", looks), bound<&remember>("remember", looks));
      },
      py::arg("most"));

  // Its arguments: the number of the call, and what ExecuTorch had to say.
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> failed;
  failed.call_once_and_store_result(
      [&] { return py::exception<CallFailed>(module, "CallFailed", PyExc_RuntimeError); });
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) {
        std::rethrow_exception(thrown);
      }
    } catch (const CallFailed& error) {
      const py::tuple told = py::make_tuple(error.call, error.what());
      PyErr_SetObject(failed.get_stored().ptr(), told.ptr());
    }
  });

  module.def(
      "reads",
      [](const py::object& tensor, uintptr_t address) { return reads(tensor.ptr(), address); },
      py::arg("tensor"),
      py::arg("address"));

  listen();
}
