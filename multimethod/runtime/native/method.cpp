#include "method.h"

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/core/exec_aten/util/tensor_dimension_limit.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "log.h"

namespace mmpack {
namespace {

namespace runtime = executorch::runtime;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::BufferDataLoader;
using executorch::extension::MmapDataLoader;
using runtime::Error;
using runtime::EValue;
using runtime::Tag;

constexpr size_t kShared = 1;  // planned buffers from here on are state: memory 2 of the file
constexpr size_t kMostAxes = runtime::kTensorDimensionLimit;

std::string told(const char* format, const char* subject, Error error) {
  std::array<char, 256> text{};
  std::snprintf(
      text.data(), text.size(), format, subject, static_cast<uint32_t>(error));
  return text.data();
}

std::unique_ptr<runtime::DataLoader> mapped(const std::string& path) {
  auto loader = MmapDataLoader::from(
      path.c_str(), MmapDataLoader::MlockConfig::UseMlockIgnoreErrors);
  if (!loader.ok()) {
    throw Failure(told(
        "Failed to create MmapDataLoader from file %s, error: 0x:%" PRIx32,
        path.c_str(),
        loader.error()));
  }
  return std::make_unique<MmapDataLoader>(std::move(loader.get()));
}

/// Strides, in elements, of sizes whose axes lie in memory in some order.
template <typename Sizes, typename Order, typename Strides>
void fill_strides(const Sizes& sizes, const Order& order, size_t axes, Strides& strides) {
  int64_t step = 1;
  for (size_t i = axes; i-- > 0;) {
    strides[order[i]] = step;
    step *= std::max<int64_t>(sizes[order[i]], 1);
  }
}

/// A tensor's look, for as long as it is handed over.
struct Handed {
  Handed(const View& view, const Tensor& wanted) {
    axes = view.sizes.size();
    if (axes > kMostAxes) {
      throw Failure("a tensor has too many axes");
    }
    std::copy(view.sizes.begin(), view.sizes.end(), sizes.begin());
    for (size_t i = 0; i < axes; ++i) {
      order[i] = static_cast<size_t>(wanted.dim()) == axes ? wanted.dim_order()[i] : i;
    }
    fill_strides(sizes, order, axes, strides);
  }

  size_t axes;
  std::array<TensorImpl::SizesType, kMostAxes> sizes;
  std::array<TensorImpl::DimOrderType, kMostAxes> order;
  std::array<TensorImpl::StridesType, kMostAxes> strides;
};

}  // namespace

Arena::Arena(size_t size) : data_(nullptr), size_(size) {
  // 64 bytes are a line of the cache, and what vector instructions like best.
  data_ = static_cast<uint8_t*>(std::calloc(size + 64, 1));
  if (data_ == nullptr) {
    throw std::bad_alloc();
  }
}

Arena::~Arena() {
  std::free(data_);
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Program::Program(const std::string& path, const std::string& outside) {
  open(mapped(path), outside);
}

Program::Program(const void* data, size_t size, const std::string& outside) {
  open(std::make_unique<BufferDataLoader>(data, size), outside);
}

void Program::open(std::unique_ptr<runtime::DataLoader> loader, const std::string& outside) {
  if (!outside.empty()) {
    outside_loader_ = mapped(outside);
    auto data = executorch::extension::FlatTensorDataMap::load(outside_loader_.get());
    if (!data.ok()) {
      throw Failure(told("Failed to load %s, error: 0x:%" PRIx32, "data map", data.error()));
    }
    outside_.emplace(std::move(data.get()));
  }
  loader_ = std::move(loader);
  auto loaded = runtime::Program::load(loader_.get());
  if (!loaded.ok()) {
    throw Failure(told("Failed to load %s, error: 0x:%" PRIx32, "program", loaded.error()));
  }
  program_.emplace(std::move(loaded.get()));
  std::vector<size_t> sizes;
  for (size_t i = 0; i < program_->num_methods(); ++i) {
    const auto name = program_->get_method_name(i);
    const auto meta = program_->method_meta(name.get());
    for (size_t j = kShared; meta.ok() && j < meta->num_memory_planned_buffers(); ++j) {
      sizes.resize(std::max(sizes.size(), j - kShared + 1));
      const auto size = static_cast<size_t>(meta->memory_planned_buffer_size(j).get());
      sizes[j - kShared] = std::max(sizes[j - kShared], size);
    }
  }
  for (size_t size : sizes) {
    state_.emplace_back(size);
  }
}

/// A call's turn: all that must not run beside it waits.
class Method::Turn {
 public:
  explicit Turn(Method& method) : method_(method), own_(method.own_) {
    for (const auto& lock : method.locks_) {
      held_[count_++] = std::unique_lock(*lock);
    }
  }

 private:
  Method& method_;
  std::unique_lock<std::mutex> own_;
  std::array<std::unique_lock<std::mutex>, 4> held_;
  size_t count_ = 0;
};

Method::Method(
    std::shared_ptr<Program> program,
    const std::string& name,
    std::vector<std::shared_ptr<std::mutex>> locks,
    Options options)
    : name_(name), options_(options), locks_(std::move(locks)), program_(std::move(program)) {
  if (locks_.size() > 4) {
    throw Failure("a method has too many locks");
  }
  const auto meta = program_->program_->method_meta(name.c_str());
  if (!meta.ok()) {
    throw Failure(told(
        "Failed to load method %s, error: 0x:%" PRIx32, name.c_str(), meta.error()));
  }
  for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
    if (i < kShared) {
      activations_.emplace_back(
          static_cast<size_t>(meta->memory_planned_buffer_size(i).get()));
      planned_.push_back(activations_.back().span());
    } else {
      planned_.push_back(program_->state_[i - kShared].span());
    }
  }
  memory_.emplace(runtime::Span<runtime::Span<uint8_t>>(planned_.data(), planned_.size()));
  manager_.emplace(&loading_, &*memory_, &working_);

  // For this load alone. A workspace for each method, rather than one for all, which locks: XNNPACK
  // takes the allocator with which a method is loaded for its model's name. Its caches of packed
  // weights are told apart by the files they are kept in; since a file of this name cannot be
  // opened, they stay in memory.
  const std::string cache = "/dev/null/" + options_.weights;
  runtime::BackendOptions<3> xnnpack;
  runtime::LoadBackendOptionsMap backends;
  if (cache.size() >= runtime::kMaxOptionValueLength ||
      xnnpack.set_option("workspace_sharing_mode", 1) != Error::Ok ||
      xnnpack.set_option("weight_cache_enabled", !options_.weights.empty()) != Error::Ok ||
      xnnpack.set_option("packed_cache_path", cache.c_str()) != Error::Ok ||
      backends.set_options("XnnpackBackend", xnnpack.view()) != Error::Ok) {
    throw Failure("options for XNNPACK do not fit");
  }
  std::optional<executorch::extension::threadpool::NoThreadPoolGuard> alone;
  if (options_.one_thread) {
    alone.emplace();
  }
  auto loaded = program_->program_->load_method(
      name.c_str(),
      &*manager_,
      nullptr,
      program_->outside_ ? &*program_->outside_ : nullptr,
      &backends);
  if (!loaded.ok()) {
    throw Failure(told(
        "Failed to load method %s, error: 0x:%" PRIx32, name.c_str(), loaded.error()));
  }
  method_.emplace(std::move(loaded.get()));

  for (size_t i = 0; i < meta->num_outputs(); ++i) {
    Result result{};
    result.tensor = meta->output_tag(i).get() == Tag::Tensor;
    if (result.tensor) {
      const auto info = meta->output_tensor_meta(i);
      result.planned = info->is_memory_planned();
      result.dtype = static_cast<int>(info->scalar_type());
      result.bytes = info->nbytes();
      result.sizes.assign(info->sizes().begin(), info->sizes().end());
      result.strides.resize(result.sizes.size());
      fill_strides(result.sizes, info->dim_order(), result.sizes.size(), result.strides);
      result.rows = std::ranges::is_sorted(info->dim_order());
    }
    results_.push_back(std::move(result));
  }
}

void Method::run(
    std::span<const Input> inputs,
    std::span<const std::optional<View>> given,
    std::span<Output> results) {
  const Turn turn(*this);
  if (!method_) {
    throw Failure("method '" + name_ + "' has been unloaded");
  }
  heard_.clear();
  const Listening listening(heard_);
  std::optional<executorch::extension::threadpool::NoThreadPoolGuard> alone;
  if (options_.one_thread) {
    alone.emplace();
  }
  if (inputs.size() != method_->inputs_size()) {
    fail("method->set_inputs() for method '%s' failed with error 0x%" PRIx32,
         Error::InvalidArgument);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    set(inputs[i], i);
  }
  for (size_t i = 0; i < results_.size(); ++i) {
    const Result& look = results_[i];
    if (!look.tensor || look.planned) {
      continue;
    }
    void* place = nullptr;
    if (fits(i, given)) {
      place = given[i]->data;
      results[i] = Written();
    } else {
      place = results[i].emplace<Fresh>(look.sizes, look.strides, look.dtype).data();
    }
    const Error error = method_->set_output_data_ptr(place, look.bytes, i);
    if (error != Error::Ok) {
      fail("set_output_data_ptr failed for %s with error 0x%" PRIx32, error);
    }
  }
  const Error error = method_->execute();
  if (error != Error::Ok) {
    fail("method->execute() failed with error 0x%2$" PRIx32, error);
  }
  for (size_t i = 0; i < results_.size(); ++i) {
    take(i, i < given.size() && given[i] ? &*given[i] : nullptr, results[i]);
  }
}

std::optional<View> Method::largest(size_t index) const {
  const Result& result = results_[index];
  if (!result.tensor || !result.rows) {
    return std::nullopt;
  }
  return View{nullptr, result.sizes, result.dtype, result.bytes};
}

const EValue& Method::input(size_t index) const {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  return method_->get_input(index);
#pragma GCC diagnostic pop
}

void Method::set(const Input& input, size_t index) {
  const char* failed = "method->set_inputs() for method '%s' failed with error 0x%" PRIx32;
  Error error = Error::Ok;
  if (const View* view = std::get_if<View>(&input)) {
    const EValue& wanted = this->input(index);
    if (!wanted.isTensor()) {
      fail(failed, Error::InvalidArgument);
    }
    Handed look(*view, wanted.toTensor());
    TensorImpl impl(
        static_cast<executorch::aten::ScalarType>(view->dtype),
        static_cast<ssize_t>(look.axes),
        look.sizes.data(),
        view->data,
        look.order.data(),
        look.strides.data());
    error = method_->set_input(EValue(Tensor(&impl)), index);
  } else if (const int64_t* whole = std::get_if<int64_t>(&input)) {
    error = method_->set_input(EValue(*whole), index);
  } else if (const double* number = std::get_if<double>(&input)) {
    error = method_->set_input(EValue(*number), index);
  } else if (const bool* flag = std::get_if<bool>(&input)) {
    error = method_->set_input(EValue(*flag), index);
  } else {
    error = method_->set_input(EValue(), index);
  }
  if (error != Error::Ok) {
    fail(failed, error);
  }
}

bool Method::fits(size_t index, std::span<const std::optional<View>> given) const {
  const Result& result = results_[index];
  return index < given.size() && given[index] && result.tensor && !result.planned &&
      result.rows && given[index]->dtype == result.dtype &&
      std::ranges::equal(given[index]->sizes, result.sizes);
}

/// given: what the caller gave. result: where the method wrote to, if that is not the program's.
void Method::take(size_t index, const View* given, Output& result) {
  const EValue& value = method_->get_output(index);
  switch (value.tag) {
    case Tag::None:
      result = std::monostate();
      return;
    case Tag::Int:
      result = value.toInt();
      return;
    case Tag::Double:
      result = value.toDouble();
      return;
    case Tag::Bool:
      result = value.toBool();
      return;
    case Tag::String:
      result = std::string(value.toString().data(), value.toString().size());
      return;
    case Tag::Tensor:
      break;
    default:
      throw Failure(
          "output " + std::to_string(index) + " is neither a tensor nor a number nor text");
  }
  const Tensor& tensor = value.toTensor();
  const Result& look = results_[index];
  const size_t axes = static_cast<size_t>(tensor.dim());
  std::array<int64_t, kMostAxes> room;
  std::copy(tensor.sizes().begin(), tensor.sizes().end(), room.begin());
  const std::span sizes(room.data(), axes);
  const bool largest = std::ranges::equal(sizes, look.sizes);
  const bool direct = std::get_if<Written>(&result) != nullptr;
  if (direct && largest) {
    return;
  }
  if (given != nullptr && !direct && look.rows && given->dtype == look.dtype &&
      std::ranges::equal(sizes, given->sizes)) {
    if (tensor.nbytes() != 0) {
      std::memcpy(given->data, tensor.const_data_ptr(), tensor.nbytes());
    }
    result = Written();
    return;
  }
  if (Fresh* made = std::get_if<Fresh>(&result)) {
    if (!largest) {
      made->narrow(sizes);
    }
    return;
  }
  std::array<int64_t, kMostAxes> strides;
  fill_strides(sizes, tensor.dim_order(), axes, strides);
  Fresh copy(sizes, {strides.data(), axes}, static_cast<int>(tensor.scalar_type()));
  if (tensor.nbytes() != 0) {
    std::memcpy(copy.data(), tensor.const_data_ptr(), tensor.nbytes());
  }
  result = std::move(copy);
}

bool Method::rows() const {
  for (size_t i = 0; i < method_->inputs_size(); ++i) {
    const EValue& value = input(i);
    if (value.isTensor() && !std::ranges::is_sorted(value.toTensor().dim_order())) {
      return false;
    }
  }
  return std::ranges::all_of(
      results_, [](const Result& result) { return !result.tensor || result.rows; });
}

std::vector<uintptr_t> Method::addresses() {
  const Turn turn(*this);
  std::vector<uintptr_t> found;
  const auto add = [&](const EValue& value) {
    const void* data = value.isTensor() ? value.toTensor().const_data_ptr() : nullptr;
    found.push_back(reinterpret_cast<uintptr_t>(data));
  };
  for (size_t i = 0; method_ && i < method_->inputs_size(); ++i) {
    add(input(i));
  }
  for (size_t i = 0; method_ && i < method_->outputs_size(); ++i) {
    add(method_->get_output(i));
  }
  return found;
}

void Method::unload() {
  const Turn turn(*this);
  method_.reset();
  // Its memory too, whoever still refers to it.
  manager_.reset();
  memory_.reset();
  planned_.clear();
  activations_.clear();
  loading_.reset();
  working_.reset();
  program_.reset();
}

void Method::fail(const char* format, Error error) const {
  throw Failure(told(format, name_.c_str(), error) + "\n" + heard_);
}

}  // namespace mmpack
