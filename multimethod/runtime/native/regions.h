// Rows of tensors, wherever their elements lie, and memory for copies of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "tensors.h"

namespace mmpack {

using Sizes = std::vector<int64_t>;

/// A tensor of the caller's, in whatever order its elements lie.
struct Strided {
  uint8_t* data;
  std::span<const int64_t> sizes;
  std::span<const int64_t> strides;  // elements
  int dtype;
};

/// `length` rows of a caller's tensor from `start` on, along `axis`.
struct Rows {
  size_t tensor;
  size_t axis;
  int64_t start;
  int64_t length;
};

/// Bytes of an element.
size_t item_of(int dtype);

/// Strides of elements that lie together in the order of their axes.
Sizes dense_strides(std::span<const int64_t> sizes);

/// Elements from one place to another, each with its strides.
void copy(
    uint8_t* to,
    std::span<const int64_t> to_strides,
    const uint8_t* from,
    std::span<const int64_t> from_strides,
    std::span<const int64_t> sizes,
    size_t item);

/// Rows of a caller's tensor, as they are in memory. Raises Failure for what is beyond it.
struct Region {
  Region(const Strided& whole, const Rows& rows);

  bool dense() const;
  /// What it is if it is dense; `sizes` are the region's.
  View view() const;

  uint8_t* data;
  Sizes sizes;
  std::span<const int64_t> strides;
  int dtype;
  size_t axis;
};

/// Memory that goes from call to call: the system gives new memory page by page, which takes
/// longer than writing to it.
class Blocks {
 public:
  /// Its own as long as it lives.
  struct Block {
    Block() = default;
    Block(Blocks* blocks, size_t bytes);
    Block(Block&& other) noexcept;
    Block& operator=(Block&& other) noexcept;
    ~Block();

    Blocks* home = nullptr;
    uint8_t* data = nullptr;
    size_t size = 0;
  };

  Blocks() = default;
  Blocks(const Blocks&) = delete;
  /// After all blocks.
  ~Blocks();

 private:
  std::mutex lock_;
  std::map<size_t, std::vector<uint8_t*>> free_;
};

}  // namespace mmpack
