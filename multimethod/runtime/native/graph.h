// Calls of methods that wait for each other, run by threads of their own without Python.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "method.h"
#include "regions.h"

namespace mmpack {

/// What an earlier call gave.
struct Result {
  size_t call;
  size_t output;
};

using Source = std::variant<Rows, Result>;

/// As many rows of an output as there is room for go to these of a caller's tensor.
struct Copy {
  size_t output;
  Rows rows;
};

/// One call. before: those that must be over, all of smaller numbers.
struct Call {
  static constexpr size_t kNothing = SIZE_MAX;
  size_t method;  // of those that a run is given; kNothing: nothing is to be done
  size_t lane;
  std::vector<size_t> before;
  std::vector<Source> inputs;
  std::vector<Copy> copies;
};

/// What calls are taken by first. ranks: for each call how urgent it is, 0 most. waits: whether a
/// lane waits for its most urgent call to become ready; else another overtakes it.
struct Order {
  std::vector<size_t> ranks;
  bool waits;
};

/// When a call ran, in seconds of the steady clock, and on which worker of its lane.
struct Ran {
  size_t call;
  size_t worker;
  double begin;
  double end;
};

/// A call failed: the first by number, if several did.
struct CallFailed : std::runtime_error {
  CallFailed(size_t number, const std::string& text) : std::runtime_error(text), call(number) {}
  size_t call;
};

/// Calls, settled once and run any number of times.
class Graph {
 public:
  /// Raises std::invalid_argument for a call that waits for itself or a later one.
  explicit Graph(std::vector<Call> calls);

  /// Runs all calls, each after those that it waits for, no two of one method at once.
  ///
  /// tensors: those that rows are of. workers: how many threads each lane has. delays: for tests,
  /// microseconds that a worker sleeps before each call; if negative, its thread ends there.
  /// interrupted: asked now and then, in the thread that calls; once it says yes no call begins.
  ///
  /// Raises CallFailed. However it ends, all threads have ended before.
  std::vector<Ran> run(
      std::span<const std::shared_ptr<Method>> methods,
      std::span<const Strided> tensors,
      const Order& order,
      std::span<const size_t> workers,
      std::span<const int64_t> delays,
      const std::function<bool()>& interrupted) const;

 private:
  friend class Running;
  std::vector<Call> calls_;
  std::vector<std::vector<size_t>> after_;
  std::vector<std::vector<size_t>> readers_;  // for each call and output, how many inputs read it
};

}  // namespace mmpack
