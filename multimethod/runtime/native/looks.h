// What the inputs of calls that were accepted looked like: the next such are accepted at once.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_set>
#include <vector>

namespace mmpack {

/// Under the GIL.
class Looks {
 public:
  /// most: so many looks are remembered, the first ones.
  explicit Looks(size_t most) : most_(most) {}

  /// Whether inputs look exactly like some that were remembered, and the memory of all of them
  /// holds their elements in their order.
  bool known(std::span<PyObject* const> inputs);

  /// Nothing is, if one of them is not a plain tensor (`append_look`).
  void remember(std::span<PyObject* const> inputs);

  size_t size() const {
    return seen_.size();
  }

 private:
  using Look = std::vector<int64_t>;
  struct Hash {
    size_t operator()(const Look& look) const;
  };

  bool look(std::span<PyObject* const> inputs);

  const size_t most_;
  std::unordered_set<Look, Hash> seen_;
  Look look_;  // of the inputs in question, here for its memory
};

}  // namespace mmpack
