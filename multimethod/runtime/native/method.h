// A program's methods as ExecuTorch runs them, each with memory of its own and a lock.
#pragma once

#include <executorch/extension/flat_tensor/flat_tensor_data_map.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/core/hierarchical_allocator.h>
#include <executorch/runtime/executor/program.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "tensors.h"

namespace mmpack {

/// What ExecuTorch answers, in the words of its own Python binding; the lines that it printed
/// follow.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Zeroed memory; the system gives it only once it is written to.
class Arena {
 public:
  explicit Arena(size_t size);
  ~Arena();
  Arena(Arena&& other) noexcept;
  Arena(const Arena&) = delete;

  executorch::runtime::Span<uint8_t> span() const {
    return {data_, size_};
  }

 private:
  uint8_t* data_;
  size_t size_;
};

/// A program, and the state that its methods share.
///
/// Planned memory 1 holds activations, and every method has its own; from 2 on it is state, which
/// all methods of the program have in common, as in ExecuTorch's own `Runtime.load_program`.
class Program {
 public:
  /// From a file, which is mapped and may lose its name.
  ///
  /// outside: a .ptd file of what the program keeps there, which is mapped too; empty if there is
  /// none.
  Program(const std::string& path, const std::string& outside);
  /// From bytes that outlive it.
  Program(const void* data, size_t size, const std::string& outside);

 private:
  friend class Method;
  void open(
      std::unique_ptr<executorch::runtime::DataLoader> loader, const std::string& outside);

  // In the order in which they depend on each other.
  std::unique_ptr<executorch::runtime::DataLoader> outside_loader_;
  std::optional<executorch::extension::FlatTensorDataMap> outside_;
  std::unique_ptr<executorch::runtime::DataLoader> loader_;
  std::optional<executorch::runtime::Program> program_;
  std::vector<Arena> state_;
};

/// An input: a tensor's memory, or one of Python's numbers. Without: None.
using Input = std::variant<std::monostate, View, int64_t, double, bool>;

/// What the caller gave for an output now holds it.
struct Written {};

/// An output: a tensor of its own, the caller's, or one of Python's values.
using Output = std::variant<std::monostate, Fresh, Written, int64_t, double, bool, std::string>;

/// How XNNPACK and the thread pool are to be used by a method.
struct Options {
  /// In the thread that calls, and no other. XNNPACK takes it to heart when the method is loaded.
  bool one_thread = false;
  /// Methods with the same name here have XNNPACK pack what weights they have in common once, and
  /// take turns in it. Empty: with nobody.
  std::string weights;
};

/// One loaded method. Any thread may call it, with or without the GIL; calls take turns.
class Method {
 public:
  /// locks: what other methods must not run beside this one hold too, in the order in which all of
  /// them are to be taken.
  Method(
      std::shared_ptr<Program> program,
      const std::string& name,
      std::vector<std::shared_ptr<std::mutex>> locks,
      Options options);

  /// Raises Failure. The results are nobody else's.
  ///
  /// results: one for each output, empty before.
  /// given: for each output, the caller's dense memory for it, or nothing; or none at all. It is
  /// written to if it has the output's dtype and sizes: by the method itself where the program
  /// leaves that output's place to the caller and these sizes are the largest, else with a copy.
  /// Only if it has not the output's sizes does the result stand elsewhere.
  void run(
      std::span<const Input> inputs,
      std::span<const std::optional<View>> given,
      std::span<Output> results);

  /// The look of an output at its largest, if it is a tensor whose rows lie in memory in their
  /// order; what it refers to is the method's.
  std::optional<View> largest(size_t index) const;

  size_t outputs() const {
    return results_.size();
  }

  /// Whether the rows of all its tensors, inputs and outputs, lie in memory in their order.
  bool rows() const;

  /// Where the tensors were in the last run: its inputs, then its outputs; 0 for what is none.
  std::vector<uintptr_t> addresses();

  /// Frees what it takes, once nobody runs it. A run after that is a Failure.
  void unload();

 private:
  struct Result {
    bool tensor;
    bool planned;  // its place is the program's
    bool rows;     // its axes lie in memory in their order
    int dtype;
    size_t bytes;                  // at most
    std::vector<int64_t> sizes;    // at most
    std::vector<int64_t> strides;  // of these sizes
  };
  class Turn;

  const executorch::runtime::EValue& input(size_t index) const;
  void set(const Input& input, size_t index);
  bool fits(size_t index, std::span<const std::optional<View>> given) const;
  void take(size_t index, const View* given, Output& result);
  [[noreturn]] void fail(const char* format, executorch::runtime::Error error) const;

  const std::string name_;
  const Options options_;
  std::mutex own_;
  std::vector<std::shared_ptr<std::mutex>> locks_;
  std::string heard_;
  std::vector<Result> results_;
  // Below, in the order in which they depend on each other.
  std::shared_ptr<Program> program_;
  executorch::extension::MallocMemoryAllocator loading_;
  executorch::extension::MallocMemoryAllocator working_;
  std::vector<Arena> activations_;
  std::vector<executorch::runtime::Span<uint8_t>> planned_;
  std::optional<executorch::runtime::HierarchicalAllocator> memory_;
  std::optional<executorch::runtime::MemoryManager> manager_;
  std::optional<executorch::runtime::Method> method_;
};

}  // namespace mmpack
