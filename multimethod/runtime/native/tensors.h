// Torch's tensors as the engine needs them: where their memory is, and new ones for results.
//
// Kept apart from ExecuTorch's headers, which bring their own copies of some of torch's; and away
// from torch's large ones, which take longer to compile than all the rest.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace mmpack {

/// The memory of a dense tensor on the CPU; it and `sizes` are the tensor's.
struct View {
  void* data;
  std::span<const int64_t> sizes;
  int dtype;  // as torch and ExecuTorch number them
  size_t bytes;
};

/// Whether an object is a torch.Tensor, of a subclass too.
bool is_tensor(PyObject* object);

/// What is known of a tensor (`is_tensor`).
View view(PyObject* tensor);

/// Its strides, in elements; they are the tensor's.
std::span<const int64_t> strides(PyObject* tensor);

/// Appends all that a signature says of a tensor, its dtype and sizes, to `look`, in numbers that
/// differ for what differs. False, with part of them appended or none, for anything but a plain
/// tensor: an instance of torch.Tensor itself, dense, on the CPU, whose memory holds its elements as
/// they are, in their order.
bool append_look(PyObject* object, std::vector<int64_t>& look);

/// Whether the engine reads the memory of torch's tensors rightly: `tensor` is any, `address` its
/// data_ptr().
bool reads(PyObject* tensor, uintptr_t address);

/// A new tensor, owned here until Python has it. Needs no GIL but for `wrap`.
class Fresh {
 public:
  Fresh() = default;
  /// With memory of its own, laid out by `strides` (elements).
  Fresh(std::span<const int64_t> sizes, std::span<const int64_t> strides, int dtype);
  Fresh(Fresh&& other) noexcept;
  Fresh& operator=(Fresh&& other) noexcept;
  ~Fresh();

  void* data() const;
  View view() const;
  /// Smaller sizes for the same memory, row by row.
  void narrow(std::span<const int64_t> sizes);
  /// As a new reference; it is then Python's. nullptr with Python's error set.
  PyObject* wrap();

 private:
  void* impl_ = nullptr;  // a c10::TensorImpl with one reference that is ours
};

}  // namespace mmpack
