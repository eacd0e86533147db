#include "looks.h"

#include <algorithm>

#include "tensors.h"

namespace mmpack {

bool Looks::known(std::span<PyObject* const> inputs) {
  return look(inputs) && seen_.contains(look_);
}

void Looks::remember(std::span<PyObject* const> inputs) {
  if (seen_.size() < most_ && look(inputs)) {
    seen_.insert(look_);
  }
}

bool Looks::look(std::span<PyObject* const> inputs) {
  look_.clear();
  return std::ranges::all_of(
      inputs, [&](PyObject* input) { return append_look(input, look_); });
}

size_t Looks::Hash::operator()(const Look& look) const {
  uint64_t hash = look.size();
  for (int64_t part : look) {
    hash = (hash ^ static_cast<uint64_t>(part)) * 0x9E3779B97F4A7C15;  // 2^64 / golden ratio
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace mmpack
