#include "tensors.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/TensorBase.h>

#include <utility>

// From torch/csrc/autograd/python_variable.h, which takes 20 s to compile.
extern PyObject* THPVariableClass;
PyObject* THPVariable_Wrap(const at::TensorBase& var);

namespace mmpack {
namespace {

// The beginning of torch's THPVariable; `reads` tells whether it still is.
struct Variable {
  PyObject_HEAD at::TensorBase tensor;
};

const at::TensorBase& unpack(PyObject* object) {
  return reinterpret_cast<Variable*>(object)->tensor;
}

at::TensorBase owner(void* impl) {
  auto* held = static_cast<c10::TensorImpl*>(impl);
  return at::TensorBase(
      c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::reclaim(held));
}

/// What every plain tensor on the CPU is dispatched by. All that would make another one of it adds to
/// that: sparse, nested, conjugated, negated, of no values, or seen by a transformation.
constexpr c10::DispatchKeySet kPlain = c10::DispatchKeySet(c10::DispatchKey::CPU) |
    c10::DispatchKeySet(c10::DispatchKey::AutocastCPU) |
    c10::DispatchKeySet(c10::DispatchKey::AutogradCPU) |
    c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView);

c10::IntArrayRef array(std::span<const int64_t> values) {
  return {values.data(), values.size()};
}

}  // namespace

bool is_tensor(PyObject* object) {
  auto* type = reinterpret_cast<PyTypeObject*>(THPVariableClass);
  return Py_IS_TYPE(object, type) || PyType_IsSubtype(Py_TYPE(object), type);
}

View view(PyObject* object) {
  const at::TensorBase& tensor = unpack(object);
  const auto sizes = tensor.sizes();
  return {
      const_cast<void*>(tensor.const_data_ptr()),
      {sizes.data(), sizes.size()},
      static_cast<int>(tensor.scalar_type()),
      tensor.nbytes()};
}

std::span<const int64_t> strides(PyObject* object) {
  const auto strides = unpack(object).strides();
  return {strides.data(), strides.size()};
}

bool append_look(PyObject* object, std::vector<int64_t>& look) {
  if (!Py_IS_TYPE(object, reinterpret_cast<PyTypeObject*>(THPVariableClass))) {
    return false;
  }
  const at::TensorBase& tensor = unpack(object);
  // In this order: others cannot be asked for sizes.
  if (!tensor.defined() || !kPlain.has_all(tensor.key_set()) || !tensor.is_contiguous()) {
    return false;
  }
  const auto sizes = tensor.sizes();
  look.push_back(static_cast<int64_t>(tensor.scalar_type()));
  look.push_back(static_cast<int64_t>(sizes.size()));
  look.insert(look.end(), sizes.begin(), sizes.end());
  return true;
}

bool reads(PyObject* tensor, uintptr_t address) {
  // Looked at as a pointer before it is followed.
  void* impl = *reinterpret_cast<void**>(reinterpret_cast<char*>(tensor) + sizeof(PyObject));
  return sizeof(at::TensorBase) == sizeof(void*) && impl != nullptr &&
      reinterpret_cast<uintptr_t>(view(tensor).data) == address;
}

Fresh::Fresh(std::span<const int64_t> sizes, std::span<const int64_t> strides, int dtype)
    : impl_(at::detail::empty_strided_cpu(
                array(sizes), array(strides), static_cast<c10::ScalarType>(dtype))
                .unsafeReleaseTensorImpl()) {}

Fresh::Fresh(Fresh&& other) noexcept : impl_(std::exchange(other.impl_, nullptr)) {}

Fresh& Fresh::operator=(Fresh&& other) noexcept {
  std::swap(impl_, other.impl_);
  return *this;
}

Fresh::~Fresh() {
  if (impl_ != nullptr) {
    owner(impl_);
  }
}

void* Fresh::data() const {
  return static_cast<c10::TensorImpl*>(impl_)->mutable_data();
}

View Fresh::view() const {
  const auto* impl = static_cast<const c10::TensorImpl*>(impl_);
  const auto sizes = impl->sizes();
  return {
      data(),
      {sizes.data(), sizes.size()},
      static_cast<int>(c10::typeMetaToScalarType(impl->dtype())),
      static_cast<size_t>(impl->numel()) * impl->dtype().itemsize()};
}

void Fresh::narrow(std::span<const int64_t> sizes) {
  static_cast<c10::TensorImpl*>(impl_)->set_sizes_contiguous(array(sizes));
}

PyObject* Fresh::wrap() {
  return THPVariable_Wrap(owner(std::exchange(impl_, nullptr)));
}

}  // namespace mmpack
