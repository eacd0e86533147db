#include "regions.h"

#include <executorch/runtime/core/exec_aten/util/scalar_type_util.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "method.h"

namespace mmpack {
namespace {

size_t count_of(std::span<const int64_t> sizes) {
  size_t count = 1;
  for (int64_t size : sizes) {
    count *= static_cast<size_t>(size);
  }
  return count;
}

}  // namespace

size_t item_of(int dtype) {
  return executorch::runtime::elementSize(static_cast<executorch::aten::ScalarType>(dtype));
}

Sizes dense_strides(std::span<const int64_t> sizes) {
  Sizes strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= std::max<int64_t>(sizes[i], 1);
  }
  return strides;
}

void copy(
    uint8_t* to,
    std::span<const int64_t> to_strides,
    const uint8_t* from,
    std::span<const int64_t> from_strides,
    std::span<const int64_t> sizes,
    size_t item) {
  // From the last axis on, what lies together in both goes at once.
  size_t axes = sizes.size();
  int64_t together = 1;
  while (axes > 0 &&
         (sizes[axes - 1] == 1 ||
          (to_strides[axes - 1] == together && from_strides[axes - 1] == together))) {
    together *= sizes[--axes];
  }
  const size_t bytes = static_cast<size_t>(together) * item;
  const auto walk = [&](const auto& self, size_t axis, uint8_t* at, const uint8_t* of) -> void {
    if (axis == axes) {
      std::memcpy(at, of, bytes);
      return;
    }
    for (int64_t i = 0; i < sizes[axis]; ++i) {
      self(self, axis + 1, at, of);
      at += to_strides[axis] * static_cast<int64_t>(item);
      of += from_strides[axis] * static_cast<int64_t>(item);
    }
  };
  if (count_of(sizes) != 0) {
    walk(walk, 0, to, from);
  }
}

Region::Region(const Strided& whole, const Rows& rows)
    : data(whole.data), sizes(whole.sizes.begin(), whole.sizes.end()),
      strides(whole.strides), dtype(whole.dtype), axis(rows.axis) {
  if (axis >= sizes.size() || rows.start < 0 || rows.length < 0 ||
      rows.start + rows.length > sizes[axis]) {
    throw Failure("rows beyond a tensor");
  }
  data += rows.start * strides[axis] * static_cast<int64_t>(item_of(dtype));
  sizes[axis] = rows.length;
}

bool Region::dense() const {
  const Sizes wanted = dense_strides(sizes);
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != 1 && strides[i] != wanted[i]) {
      return false;
    }
  }
  return true;
}

View Region::view() const {
  return {data, sizes, dtype, count_of(sizes) * item_of(dtype)};
}

Blocks::Block::Block(Blocks* blocks, size_t bytes) : home(blocks), size(bytes) {
  const std::lock_guard held(home->lock_);
  auto& free = home->free_[size];
  if (!free.empty()) {
    data = free.back();
    free.pop_back();
    return;
  }
  // In whole lines of the cache, with room behind it: XNNPACK's kernels read beyond the end.
  constexpr size_t kLine = 64;
  const size_t whole = (size + 3 * kLine) / kLine * kLine;
  data = static_cast<uint8_t*>(std::aligned_alloc(kLine, whole));
  if (data == nullptr) {
    throw std::bad_alloc();
  }
}

Blocks::Block::Block(Block&& other) noexcept {
  *this = std::move(other);
}

Blocks::Block& Blocks::Block::operator=(Block&& other) noexcept {
  std::swap(home, other.home);
  std::swap(data, other.data);
  std::swap(size, other.size);
  return *this;
}

Blocks::Block::~Block() {
  if (data != nullptr) {
    const std::lock_guard held(home->lock_);
    home->free_[size].push_back(data);
  }
}

Blocks::~Blocks() {
  for (auto& [size, free] : free_) {
    for (uint8_t* data : free) {
      std::free(data);
    }
  }
}

}  // namespace mmpack
