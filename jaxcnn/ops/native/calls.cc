// Custom calls that XLA makes on the CPU (jax.ffi): the reductions of batch normalisation, and convolutions of (N, H, W, C)
// arrays and their gradients. Convolutions use the kernels of this library where these are faster, and otherwise oneDNN.
// __init__.py compiles this file at first use.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "batch_norm.h"
#include "depthwise.h"
#include "few_channels.h"
#include "grouped.h"
#include "oneapi/dnnl/dnnl.hpp"
#include "quantized_conv.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = memory::dims;

extern "C" int64_t JaxcnnConvLimit = 1024;  // largest number of cached primitives

namespace {

enum Kind : int64_t { kForward, kInputGradient, kKernelGradient };

// The attribute `window` of a call, whose values are in the order of Geometry.window in geometry.py.
struct Window {
  std::vector<int64_t> values;

  explicit Window(ffi::Span<const int64_t> window) : values(window.begin(), window.end()) {}
  int64_t stride_y() const { return values[0]; }
  int64_t stride_x() const { return values[1]; }
  int64_t pad_top() const { return values[2]; }
  int64_t pad_left() const { return values[3]; }
  int64_t pad_bottom() const { return values[4]; }
  int64_t pad_right() const { return values[5]; }
  int64_t dilation_y() const { return values[6]; }
  int64_t dilation_x() const { return values[7]; }
  int64_t groups() const { return values[8]; }
  int64_t max_padding() const { return *std::max_element(&values[2], &values[6]); }
  bool is_dilated() const { return dilation_y() != 1 || dilation_x() != 1; }
};

// A compiled oneDNN primitive with its scratchpad. If the primitive needs the kernel in another layout than JAX's, the
// kernel is reordered at each call.
struct Primitive {
  dnnl::primitive convolution, reorder;
  memory x, y, kernel, jax_kernel, scratchpad;
  bool needs_reorder = false;
};

using quantized::Engine;

// Memory whose address is set at each call.
memory UnboundMemory(const memory::desc& desc) { return memory(desc, Engine(), nullptr); }

Primitive MakePrimitive(Kind kind, const Dims& x, const Dims& kernel, const Dims& y, memory::data_type type,
                        const Window& window) {
  const Dims strides{window.stride_y(), window.stride_x()};
  const Dims pad_before{window.pad_top(), window.pad_left()}, pad_after{window.pad_bottom(), window.pad_right()};
  const Dims dilation{window.dilation_y() - 1, window.dilation_x() - 1};  // oneDNN's dilation is 0 for a dense kernel
  const int64_t groups = window.groups(), h = kernel[0], w = kernel[1], in = kernel[2], out = kernel[3] / groups;
  auto nhwc = [&](const Dims& d) { return memory::desc({d[0], d[3], d[1], d[2]}, type, memory::format_tag::nhwc); };
  const auto x_desc = nhwc(x), y_desc = nhwc(y);
  // The kernel in JAX's layout, (H, W, in, groups * out), and in `any` layout, which lets oneDNN choose.
  Dims sizes{out, in, h, w}, kernel_strides{1, kernel[3], w * in * kernel[3], in * kernel[3]};
  if (groups > 1) {
    sizes.insert(sizes.begin(), groups);
    kernel_strides.insert(kernel_strides.begin(), out);
  }
  const memory::desc jax_layout(sizes, type, kernel_strides), any_layout(sizes, type, memory::format_tag::any);

  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(Engine(), dnnl::prop_kind::forward_training, algorithm, x_desc,
                                                          any_layout, y_desc, strides, dilation, pad_before, pad_after,
                                                          attr);
  Primitive primitive;
  memory::desc layout, scratchpad;
  if (kind == kForward) {
    primitive.convolution = dnnl::convolution_forward(forward);
    layout = forward.weights_desc(), scratchpad = forward.scratchpad_desc();
  } else if (kind == kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc desc(Engine(), algorithm, x_desc, any_layout, y_desc, strides,
                                                               dilation, pad_before, pad_after, forward, attr);
    primitive.convolution = dnnl::convolution_backward_data(desc);
    layout = desc.weights_desc(), scratchpad = desc.scratchpad_desc();
  } else {
    const dnnl::convolution_backward_weights::primitive_desc desc(Engine(), algorithm, x_desc, any_layout, y_desc, strides,
                                                                  dilation, pad_before, pad_after, forward, attr);
    primitive.convolution = dnnl::convolution_backward_weights(desc);
    layout = desc.diff_weights_desc(), scratchpad = desc.scratchpad_desc();
  }
  primitive.x = UnboundMemory(x_desc), primitive.y = UnboundMemory(y_desc);
  primitive.kernel = UnboundMemory(layout), primitive.jax_kernel = UnboundMemory(jax_layout);
  primitive.scratchpad = UnboundMemory(scratchpad);
  primitive.needs_reorder = layout != jax_layout;
  if (primitive.needs_reorder) {
    const auto& [source, target] = kind == kKernelGradient ? std::pair(layout, jax_layout) : std::pair(jax_layout, layout);
    primitive.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), source, Engine(), target));
  }
  return primitive;
}

// Returns memory that is aligned to 64 bytes and reused by later calls. Only one convolution may use it at a time.
void* Workspace(size_t bytes) {
  static auto& space = *new std::vector<char>;
  if (space.size() < bytes + 64) std::vector<char>(bytes + 64).swap(space);
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(space.data()) + 63) / 64 * 64);
}

// Runs tasks one after another on a dedicated thread. Each task uses all cores, so tasks gain nothing from running at the
// same time. GNU OpenMP keeps a team of threads for every thread that calls it, and XLA would call it from many threads.
class SerialExecutor {
 public:
  void Run(std::function<void()> work) {
    std::packaged_task<void()> task(std::move(work));
    auto done = task.get_future();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    ready_.notify_one();
    done.get();  // rethrows an exception of the task
  }

 private:
  void Loop() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      ready_.wait(lock, [this] { return !tasks_.empty(); });
      std::packaged_task<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::packaged_task<void()>> tasks_;
  std::thread thread_{[this] { Loop(); }};
};

// The executor and the objects that it uses are never destroyed, because calls are possible until the process ends.
SerialExecutor& Executor() {
  static auto& executor = *new SerialExecutor;
  return executor;
}

// Returns the number of OpenMP's threads for a call: those of XLA, at most the cores of this process or OMP_NUM_THREADS.
int NumThreads(const ffi::ThreadPool& pool) {
  static const int cores = omp_get_max_threads();
  return std::clamp(static_cast<int>(pool.num_threads()), 1, cores);
}

// The cached primitives, from the most to the least recently used. Only the thread of the executor accesses them.
using Primitives = std::list<std::pair<std::vector<int64_t>, Primitive>>;
Primitives& primitives = *new Primitives;
auto& primitive_by_key = *new std::map<std::vector<int64_t>, Primitives::iterator>;
std::atomic<int64_t> num_calls{0}, num_images{0}, num_primitives{0};  // counters for tests

Primitive& GetPrimitive(Kind kind, const Dims& x, const Dims& kernel, const Dims& y, memory::data_type type,
                        const Window& window, int threads) {
  std::vector<int64_t> key{kind, static_cast<int64_t>(type), threads};
  for (const Dims* dims : {&x, &kernel, &y, &window.values}) key.insert(key.end(), dims->begin(), dims->end());
  if (auto cached = primitive_by_key.find(key); cached != primitive_by_key.end()) {
    primitives.splice(primitives.begin(), primitives, cached->second);
  } else {
    primitives.emplace_front(key, MakePrimitive(kind, x, kernel, y, type, window));
    primitive_by_key[key] = primitives.begin();
    while (static_cast<int64_t>(primitives.size()) > JaxcnnConvLimit) {
      primitive_by_key.erase(primitives.back().first);
      primitives.pop_back();
    }
    num_primitives = static_cast<int64_t>(primitives.size());
  }
  return primitives.front().second;
}

float* Floats(ffi::AnyBuffer& buffer) { return static_cast<float*>(buffer.untyped_data()); }
BFloat16* BFloat16s(ffi::AnyBuffer& buffer) { return static_cast<BFloat16*>(buffer.untyped_data()); }
Dims DimsOf(const ffi::AnyBuffer& buffer) { return {buffer.dimensions().begin(), buffer.dimensions().end()}; }

// Computes a convolution on XLA's threads if it is depthwise, has groups, or has few channels. Returns false without
// computing anything if another method is faster.
bool RunOnXlaThreads(ffi::ThreadPool pool, int64_t kind, const Window& window, ffi::AnyBuffer& x, ffi::AnyBuffer& kernel,
                     ffi::AnyBuffer& y) {
  if (x.element_type() != ffi::DataType::F32 || window.stride_y() != window.stride_x() || window.is_dilated()) return false;
  const Dims in = DimsOf(x), size = DimsOf(kernel), out = DimsOf(y);
  const int64_t stride = window.stride_y(), top = window.pad_top(), left = window.pad_left(), groups = window.groups();
  auto run = [&](const auto& convolution) {
    ++num_calls, num_images += in[0];
    if (kind == kKernelGradient)
      convolution.KernelGradient(pool, Floats(x), Floats(y), Floats(kernel));
    else if (kind == kInputGradient)
      convolution.InputGradient(pool, Floats(y), Floats(kernel), Floats(x));
    else
      convolution.Forward(pool, Floats(x), Floats(kernel), Floats(y));
    return true;
  };
  if (in[3] == out[3] && size[0] == 3 && size[1] == 3 && window.max_padding() <= 2) {
    const depthwise::Convolution depthwise{in[0], in[1], in[2], in[3], out[1], out[2], stride, top, left};
    if (groups == in[3] && depthwise.IsFaster(kind == kKernelGradient)) return run(depthwise);
    const grouped::Convolution grouped{in[0], in[1], in[2], in[3], out[1], out[2], size[2], stride, top, left};
    if (groups > 1 && grouped.IsFaster(kind == kInputGradient)) return run(grouped);
  }
  const few_channels::Convolution few_channels{in[0],  in[1],  in[2],  in[3], size[0], size[1],
                                               out[1], out[2], out[3], top,   left};
  return stride == 1 && groups == 1 && std::max(top, window.pad_bottom()) < size[0] &&
         std::max(left, window.pad_right()) < size[1] && few_channels.IsFaster() && run(few_channels);
}

// Copies the part of a group from a kernel (9 * in, groups * out) to a kernel (9 * in, out), or back.
template <typename T>
void CopyGroup(const T* source, int64_t source_stride, int64_t rows, int64_t out, T* target, int64_t target_stride) {
  for (int64_t i = 0; i < rows; ++i) std::copy_n(source + i * source_stride, out, target + i * target_stride);
}

// Computes a convolution by Winograd's algorithm, one group after another. Returns false without computing anything if
// oneDNN is faster.
template <typename T>
bool RunWinograd(int threads, int64_t kind, const Window& window, const Dims& x, const Dims& kernel, const Dims& y, T* x_data,
                 T* kernel_data, T* y_data) {
  if (window.stride_y() != 1 || window.stride_x() != 1 || window.is_dilated() || kernel[0] != 3 || kernel[1] != 3 ||
      window.max_padding() > 2)
    return false;
  const int64_t groups = window.groups(), in = kernel[2], out = kernel[3] / groups;
  const int64_t top = window.pad_top(), left = window.pad_left();
  winograd::Convolution convolution{x[0], x[1], x[2], in, y[1], y[2], out, top, left, x[3], y[3]};
  if (kind == kInputGradient)
    convolution = {y[0], y[1], y[2], out, x[1], x[2], in, 2 - top, 2 - left, y[3], x[3]};
  const bool is_faster =
      std::is_same_v<T, BFloat16> ? convolution.IsFasterInBFloat16(kind == kKernelGradient) : convolution.IsFaster();
  if (!is_faster) return false;
  float* const workspace = static_cast<float*>(Workspace(4 * convolution.workspace(kind == kKernelGradient, threads)));
  std::vector<T> group_kernel(groups > 1 ? 9 * in * out : 0);
  T* const weights = groups > 1 ? group_kernel.data() : kernel_data;
  for (int64_t group = 0; group < groups; ++group) {
    T *const x_group = x_data + group * in, *const y_group = y_data + group * out;
    T* const kernel_group = kernel_data + group * out;
    if (groups > 1 && kind != kKernelGradient) CopyGroup(kernel_group, kernel[3], 9 * in, out, weights, out);
    if (kind == kForward) winograd::Forward<T>(convolution, x_group, weights, false, y_group, workspace, threads);
    if (kind == kInputGradient) winograd::Forward<T>(convolution, y_group, weights, true, x_group, workspace, threads);
    if (kind == kKernelGradient) winograd::KernelGradient<T>(convolution, x_group, y_group, weights, workspace, threads);
    if (groups > 1 && kind == kKernelGradient) CopyGroup(weights, out, 9 * in, out, kernel_group, kernel[3]);
  }
  return true;
}

// Returns whether tap `tap` of a kernel is ever multiplied by one of the `size` pixels of a row or column, rather than by its
// padding alone.
bool SeesPixels(int64_t tap, int64_t size, int64_t outputs, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t first = std::max<int64_t>(0, pad - tap * dilation + stride - 1) / stride;  // the first output after padding
  return first < outputs && first * stride + tap * dilation - pad < size;
}

// Sets the gradient of a kernel to zero for the taps that see only padding. In bfloat16, oneDNN 3.2 computes it from
// uninitialised memory if the stride is 2 or more.
void ClearTapsOfPadding(const Window& window, const Dims& x, const Dims& y, ffi::AnyBuffer& kernel) {
  const Dims size = DimsOf(kernel);
  const size_t tap_bytes = kernel.size_bytes() / (size[0] * size[1]);
  for (int64_t i = 0; i < size[0]; ++i)
    for (int64_t j = 0; j < size[1]; ++j)
      if (!SeesPixels(i, x[1], y[1], window.stride_y(), window.pad_top(), window.dilation_y()) ||
          !SeesPixels(j, x[2], y[2], window.stride_x(), window.pad_left(), window.dilation_x()))
        std::memset(static_cast<char*>(kernel.untyped_data()) + (i * size[1] + j) * tap_bytes, 0, tap_bytes);
}

void RunOneDnn(int threads, int64_t kind, memory::data_type type, const Window& window, ffi::AnyBuffer& x,
               ffi::AnyBuffer& kernel, ffi::AnyBuffer& y) {
  omp_set_num_threads(threads);
  Primitive& primitive =
      GetPrimitive(static_cast<Kind>(kind), DimsOf(x), DimsOf(kernel), DimsOf(y), type, window, threads);
  primitive.x.set_data_handle(x.untyped_data());
  primitive.y.set_data_handle(y.untyped_data());
  primitive.jax_kernel.set_data_handle(kernel.untyped_data());
  const size_t scratchpad = (primitive.scratchpad.get_desc().get_size() + 63) / 64 * 64;
  const size_t reordered = primitive.needs_reorder ? primitive.kernel.get_desc().get_size() : 0;
  char* const workspace = static_cast<char*>(Workspace(scratchpad + reordered));
  primitive.scratchpad.set_data_handle(workspace);
  primitive.kernel.set_data_handle(primitive.needs_reorder ? workspace + scratchpad : kernel.untyped_data());

  dnnl::stream stream(Engine());
  if (primitive.needs_reorder && kind != kKernelGradient)
    primitive.reorder.execute(stream, {{DNNL_ARG_FROM, primitive.jax_kernel}, {DNNL_ARG_TO, primitive.kernel}});
  primitive.convolution.execute(
      stream, {{kind == kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, primitive.x},
               {kind == kKernelGradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, primitive.kernel},
               {kind == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, primitive.y},
               {DNNL_ARG_SCRATCHPAD, primitive.scratchpad}});
  if (primitive.needs_reorder && kind == kKernelGradient)
    primitive.reorder.execute(stream, {{DNNL_ARG_FROM, primitive.kernel}, {DNNL_ARG_TO, primitive.jax_kernel}});
  stream.wait();
  if (kind == kKernelGradient) ClearTapsOfPadding(window, DimsOf(x), DimsOf(y), kernel);
}

// Computes a convolution on OpenMP's threads, by Winograd's algorithm or by oneDNN.
void RunOnOpenMpThreads(int threads, int64_t kind, bool native, const Window& window, ffi::AnyBuffer& x,
                        ffi::AnyBuffer& kernel, ffi::AnyBuffer& y) {
  const auto type = x.element_type() == ffi::DataType::BF16 ? memory::data_type::bf16 : memory::data_type::f32;
  ++num_calls, num_images += x.dimensions()[0];
  auto run_winograd = [&](auto x_data, auto kernel_data, auto y_data) {
    return RunWinograd(threads, kind, window, DimsOf(x), DimsOf(kernel), DimsOf(y), x_data, kernel_data, y_data);
  };
  if (native && (type == memory::data_type::f32 ? run_winograd(Floats(x), Floats(kernel), Floats(y))
                                                : run_winograd(BFloat16s(x), BFloat16s(kernel), BFloat16s(y))))
    return;
  RunOneDnn(threads, kind, type, window, x, kernel, y);
}

// Implements the call JaxcnnConv. `kind` determines which of x (N, H, W, C), kernel (H, W, C / groups, features) and
// y (N, H', W', features) is the result; the other two are the operands. Without `native`, oneDNN computes all convolutions.
ffi::Error RunConv(ffi::ThreadPool pool, int64_t kind, bool native, ffi::Span<const int64_t> window_values, ffi::AnyBuffer a,
                   ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> result) {
  const int threads = NumThreads(pool);
  const Window window(window_values);
  ffi::AnyBuffer& x = kind == kInputGradient ? *result : a;
  ffi::AnyBuffer& kernel = kind == kKernelGradient ? *result : b;
  ffi::AnyBuffer& y = kind == kForward ? *result : kind == kInputGradient ? a : b;
  if (native && RunOnXlaThreads(pool, kind, window, x, kernel, y)) return ffi::Error::Success();
  try {
    Executor().Run([&] { RunOnOpenMpThreads(threads, kind, native, window, x, kernel, y); });
    return ffi::Error::Success();
  } catch (const std::exception& e) {
    return ffi::Error::Internal(std::string("convolution: ") + e.what());
  }
}

// Implements the call JaxcnnSums, which maps g and x (..., C), of the same type, and the mean, scale and bias (3, C) to sums
// (2, C); see batch_norm::GradientSums.
ffi::Error RunSums(ffi::ThreadPool pool, bool relu, ffi::AnyBuffer g, ffi::AnyBuffer x, ffi::AnyBuffer affine,
                   ffi::Result<ffi::AnyBuffer> sums) {
  const int64_t channels = x.dimensions().back(), rows = static_cast<int64_t>(x.element_count()) / channels;
  const float *const mean = Floats(affine), *const scale = mean + channels, *const bias = scale + channels;
  if (x.element_type() == ffi::DataType::BF16)
    batch_norm::GradientSums(pool, rows, channels, BFloat16s(g), BFloat16s(x), mean, scale, bias, relu, Floats(*sums));
  else
    batch_norm::GradientSums(pool, rows, channels, Floats(g), Floats(x), mean, scale, bias, relu, Floats(*sums));
  return ffi::Error::Success();
}

// Implements the call JaxcnnMoments, which maps x (..., C) to its moments (2, C); see batch_norm::Moments.
ffi::Error RunMoments(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> moments) {
  const int64_t channels = x.dimensions().back(), rows = static_cast<int64_t>(x.element_count()) / channels;
  if (x.element_type() == ffi::DataType::BF16)
    batch_norm::Moments(pool, rows, channels, BFloat16s(x), Floats(*moments));
  else
    batch_norm::Moments(pool, rows, channels, Floats(x), Floats(*moments));
  return ffi::Error::Success();
}

quantized::Registry& quantized_layers = *new quantized::Registry;

memory::data_type TypeOf(const ffi::AnyBuffer& buffer) {
  if (buffer.element_type() == ffi::DataType::F32) return memory::data_type::f32;
  return buffer.element_type() == ffi::DataType::S8 ? memory::data_type::s8 : memory::data_type::u8;
}

// Computes a registered layer; see quantized_conv.h. A residual is copied to y, unless XLA has given both the same buffer.
ffi::Error RunQuantized(ffi::ThreadPool pool, int64_t number, ffi::AnyBuffer x, ffi::AnyBuffer* residual, ffi::AnyBuffer y) {
  try {
    const auto layer = quantized_layers.Get(number);
    if (residual && residual->untyped_data() != y.untyped_data())
      std::memcpy(y.untyped_data(), residual->untyped_data(), y.size_bytes());
    Executor().Run([&] {
      layer->Run(NumThreads(pool), DimsOf(x), TypeOf(x), x.untyped_data(), DimsOf(y), TypeOf(y), y.untyped_data(),
                 Workspace);
    });
    return ffi::Error::Success();
  } catch (const std::exception& e) {
    return ffi::Error::Internal(std::string("int8 convolution: ") + e.what());
  }
}

// Implements the call JaxcnnQuantizedConv, which maps x (N, H, W, C) of 8-bit integers to y (N, H', W', features).
ffi::Error RunQuantizedConv(ffi::ThreadPool pool, int64_t layer, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  return RunQuantized(pool, layer, x, nullptr, *y);
}

// Implements the call JaxcnnQuantizedSum, the same with a residual of the size of y.
ffi::Error RunQuantizedSum(ffi::ThreadPool pool, int64_t layer, ffi::AnyBuffer x, ffi::AnyBuffer residual,
                           ffi::Result<ffi::AnyBuffer> y) {
  return RunQuantized(pool, layer, x, &residual, *y);
}

}  // namespace

// Registers a layer of 8-bit integers, and returns its number; see quantized::Settings and quantized::Scales.
extern "C" int64_t JaxcnnAddQuantizedLayer(const int64_t* settings, const float* scales, const int8_t* kernel,
                                           const float* kernel_scales, const float* bias) {
  quantized::Settings layer_settings;
  static_assert(sizeof(layer_settings) == 15 * sizeof(int64_t));
  std::memcpy(&layer_settings, settings, sizeof(layer_settings));
  const quantized::Scales layer_scales{scales[0], scales[1], scales[2], scales[3]};
  return quantized_layers.Add(std::make_shared<quantized::Layer>(layer_settings, layer_scales, kernel, kernel_scales, bias));
}

extern "C" void JaxcnnRemoveQuantizedLayer(int64_t number) { quantized_layers.Remove(number); }

// Returns the instruction set that oneDNN uses, a value of dnnl_cpu_isa_t.
extern "C" int64_t JaxcnnInstructionSet() { return static_cast<int64_t>(dnnl::get_effective_cpu_isa()); }

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnQuantizedConv, RunQuantizedConv,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("layer")
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnQuantizedSum, RunQuantizedSum,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("layer")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnConv, RunConv,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("kind")
                                  .Attr<bool>("native")
                                  .Attr<ffi::Span<const int64_t>>("window")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnSums, RunSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("relu")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnMoments, RunMoments,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

// Returns the number of convolution calls, of their images, and of cached primitives. Tests use it.
extern "C" void JaxcnnConvCounts(int64_t* counts) {
  counts[0] = num_calls, counts[1] = num_images, counts[2] = num_primitives;
}
