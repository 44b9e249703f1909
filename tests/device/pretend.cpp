// A device that is not the CPU, for tests: PyTorch's PrivateUse1 under the name "pretend".
//
// Its memory is the CPU's and every kernel runs there on copies, so values are real. As on a GPU, a
// kernel refuses tensors of two devices and generators of another one. It counts kernels, reads of
// values by the host, and copies to the device for which the host waits.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <set>
#include <string>

namespace {

constexpr auto DEVICE = c10::DeviceType::PrivateUse1;
constexpr auto KEY = c10::DispatchKey::PrivateUse1;

struct Counts {
  int64_t kernels = 0, reads = 0, writes = 0;
};
Counts counts;
thread_local bool inside = false;  // a kernel runs on copies, which do not count

struct Inside {
  bool before = inside;
  Inside() { inside = true; }
  ~Inside() { inside = before; }
};

// Memory and generators

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &c10::free_cpu, c10::Device(DEVICE, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Allocator allocator;
REGISTER_ALLOCATOR(DEVICE, &allocator);

struct Generator final : at::CPUGeneratorImpl {
  explicit Generator(uint64_t seed = c10::default_rng_seed_val) : at::CPUGeneratorImpl(seed) {
    at_home(true);
  }
  void at_home(bool yes) {
    device_ = c10::Device(yes ? DEVICE : c10::DeviceType::CPU, yes ? 0 : -1);
    key_set_ = c10::DispatchKeySet(yes ? KEY : c10::DispatchKey::CPU);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>();
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator one = at::make_generator<Generator>();
    return one;
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    auto data = allocator.allocate(bytes);
    std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
    impl->set_data_ptr_noswap(std::move(data));
    impl->set_nbytes(bytes);
  }
};
const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return DEVICE; }
  c10::Device exchangeDevice(c10::Device) const override { return {DEVICE, 0}; }
  c10::Device getDevice() const override { return {DEVICE, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream) const override {
    return c10::Stream(c10::Stream::DEFAULT, {DEVICE, 0});
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Tensors

at::Tensor empty(c10::SymIntArrayRef size, std::optional<c10::ScalarType> dtype,
                 std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>,
                 std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator,
                                   c10::DispatchKeySet(KEY), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                         std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator,
      c10::DispatchKeySet(KEY), c10::dtype_or_default(dtype));
}

// A CPU tensor of the same memory.
at::Tensor mirror(const at::Tensor& tensor) {
  auto storage = tensor.storage();
  auto bytes = storage.nbytes();
  auto* held = new c10::Storage(storage);
  c10::DataPtr data(const_cast<void*>(storage.data()), held,
                    [](void* one) { delete static_cast<c10::Storage*>(one); },
                    c10::Device(c10::DeviceType::CPU));
  c10::Storage same(c10::Storage::use_byte_size_t(), bytes, std::move(data), nullptr, false);
  auto found = at::detail::make_tensor<c10::TensorImpl>(
      std::move(same), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  found.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                     tensor.storage_offset());
  return found;
}

at::Tensor on_cpu(const at::Tensor& tensor) {
  return tensor.device().type() == DEVICE ? mirror(tensor) : tensor;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (!inside) {
    ++counts.kernels;
    if (to.is_cpu()) ++counts.reads;
    else if (from.is_cpu() && !non_blocking) ++counts.writes;
  }
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  ++counts.reads;
  return at::native::_local_scalar_dense_cpu(mirror(self));
}

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size,
                         std::optional<c10::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->guard_int(__FILE__, __LINE__);
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), start);
}

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size,
                         c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size),
                                    C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor unfold(const at::Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(self, dim, size, step);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, c10::SymInt offset,
                        c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::set_storage_cpu_(self, source, offset.guard_int(__FILE__, __LINE__),
                                      C10_AS_INTARRAYREF_SLOW(size),
                                      C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor& set_source(at::Tensor& self, at::Storage source) {
  int64_t count = source.nbytes() / self.dtype().itemsize();
  return at::native::set_storage_cpu_(self, source, 0, {count}, {});
}

// Kernels

// The size of the result depends on values, which a GPU's kernel reads on the host.
const std::set<std::string> READS{
    "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::bincount", "aten::histc",
    "aten::_linalg_eigvals", "aten::linalg_eig"};
// Tensors of indices may lie on the CPU.
const std::set<std::string> MIXED{"aten::index", "aten::index_put_", "aten::_index_put_impl_"};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  std::vector<Generator*> swapped;
  bool other = false, own = false, mask = false;
  auto look = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (tensor.device().type() == DEVICE) own = true;
    else if (tensor.dim() > 0) other = true;
  };
  auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  for (size_t at = 0; at < arguments.size(); ++at) {
    const c10::IValue& value = arguments[at];
    if (value.isTensor()) {
      look(value.toTensor());
    } else if (value.isTensorList()) {
      for (const at::Tensor& one : value.toTensorVector()) look(one);
    } else if (value.isOptionalTensorList()) {
      for (const auto& one : value.toOptionalTensorList()) {
        std::optional<at::Tensor> tensor = one;
        if (!tensor) continue;
        look(*tensor);
        mask |= tensor->scalar_type() == at::kBool || tensor->scalar_type() == at::kByte;
      }
    } else if (value.isGenerator()) {
      auto* generator = dynamic_cast<Generator*>(value.toGenerator().unsafeGetGeneratorImpl());
      TORCH_CHECK(generator, name, ": a generator of the CPU for a tensor of the device");
      swapped.push_back(generator);
    }
  }
  bool mixed = MIXED.count(name);
  TORCH_CHECK(!(own && other) || mixed, name, ": tensors of two devices, pretend:0 and cpu");
  if (!inside) {
    ++counts.kernels;
    counts.reads += READS.count(name) || (mixed && mask);
    counts.writes += mixed && other;
  }
  Inside guard;
  for (auto* generator : swapped) generator->at_home(false);
  try {
    at::native::cpu_fallback(op, stack);
  } catch (...) {
    for (auto* generator : swapped) generator->at_home(true);
    throw;
  }
  for (auto* generator : swapped) generator->at_home(true);
}

at::Tensor back(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.to(c10::Device(DEVICE, 0)) : tensor;
}

at::Tensor lent(const std::optional<at::Tensor>& tensor) {
  return tensor && tensor->defined() ? on_cpu(*tensor) : at::Tensor();
}

void same(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.device() == b.device(), "convolution: tensors of two devices, ", a.device(),
              " and ", b.device());
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                       c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                       c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  same(input, weight);
  ++counts.kernels;
  Inside guard;
  return back(at::convolution(mirror(input), mirror(weight), lent(bias), C10_AS_INTARRAYREF_SLOW(stride),
                              C10_AS_INTARRAYREF_SLOW(padding), C10_AS_INTARRAYREF_SLOW(dilation),
                              transposed, C10_AS_INTARRAYREF_SLOW(output_padding),
                              groups.guard_int(__FILE__, __LINE__)));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> mask) {
  ++counts.kernels;
  Inside guard;
  auto [x, w, b] = at::convolution_backward(
      mirror(gradient), mirror(input), mirror(weight), at::IntArrayRef({weight.size(0)}),
      C10_AS_INTARRAYREF_SLOW(stride), C10_AS_INTARRAYREF_SLOW(padding),
      C10_AS_INTARRAYREF_SLOW(dilation), transposed, C10_AS_INTARRAYREF_SLOW(output_padding),
      groups.guard_int(__FILE__, __LINE__), mask);
  return {back(x), back(w), back(b)};
}

// The running statistics change without a mark in the schema.
std::tuple<at::Tensor, at::Tensor, at::Tensor> native_batch_norm(
    const at::Tensor& input, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& mean,
    const std::optional<at::Tensor>& variance, bool training, double momentum, double eps) {
  ++counts.kernels;
  Inside guard;
  auto [output, saved, inverse] = at::native_batch_norm(
      mirror(input), lent(weight), lent(bias), lent(mean), lent(variance), training, momentum, eps);
  return {back(output), back(saved), back(inverse)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("resize_", resize);
  m.impl("view", view);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("unfold", unfold);
  m.impl("set_.source_Storage", set_source);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("native_batch_norm", native_batch_norm);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

at::Tensor take_counts() {
  auto found = at::tensor({counts.kernels, counts.reads, counts.writes}, at::kLong);
  counts = Counts();
  return found;
}

TORCH_LIBRARY(pretend, m) { m.def("take_counts() -> Tensor", take_counts); }

}  // namespace
