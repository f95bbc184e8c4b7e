// Convolutions of (N, H, W, C) arrays and their gradients, as calls that XLA makes on the CPU (jax.ffi): by oneDNN, or by
// kernels of our own where those are faster. __init__.py compiles this file at first use, conv.py says what each call means.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "batch_norm.h"
#include "depthwise.h"
#include "few_channels.h"
#include "grouped.h"
#include "oneapi/dnnl/dnnl.hpp"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = memory::dims;

extern "C" int64_t JaxcnnConvLimit = 1024;  // how many plans are kept

namespace {

enum Kind : int64_t { kForward, kInputGradient, kKernelGradient };

// A compiled primitive, with its own scratchpad and the reordered copy of the kernel that it works on.
struct Plan {
  dnnl::primitive conv, reorder;
  memory x, y, kernel, plain_kernel, scratchpad;
  bool reordered = false;
};

dnnl::engine& Engine() {
  static auto& engine = *new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// What is read through MemoryOf is set at each call.
memory Bound(const memory::desc& desc) { return memory(desc, Engine(), nullptr); }

// window: strides (2), padding before (2), padding after (2), dilations (2), groups
Plan MakePlan(Kind kind, Dims x, Dims kernel, Dims y, memory::data_type type, const std::vector<int64_t>& window) {
  const Dims strides{window[0], window[1]}, before{window[2], window[3]}, after{window[4], window[5]};
  const Dims dilation{window[6] - 1, window[7] - 1};  // oneDNN counts the gaps
  const int64_t groups = window[8], h = kernel[0], w = kernel[1], in = kernel[2], out = kernel[3] / groups;
  auto nhwc = [&](const Dims& d) { return memory::desc({d[0], d[3], d[1], d[2]}, type, memory::format_tag::nhwc); };
  const auto x_desc = nhwc(x), y_desc = nhwc(y);
  // the kernel as it comes, (H, W, in, groups * out), and in whatever layout the primitive asks for
  Dims sizes{out, in, h, w}, places{1, kernel[3], w * in * kernel[3], in * kernel[3]};
  if (groups > 1) {
    sizes.insert(sizes.begin(), groups);
    places.insert(places.begin(), out);
  }
  const memory::desc plain(sizes, type, places), any(sizes, type, memory::format_tag::any);

  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(Engine(), dnnl::prop_kind::forward_training, algorithm, x_desc,
                                                          any, y_desc, strides, dilation, before, after, attr);
  Plan plan;
  memory::desc inner, scratchpad;
  if (kind == kForward) {
    plan.conv = dnnl::convolution_forward(forward);
    inner = forward.weights_desc(), scratchpad = forward.scratchpad_desc();
  } else if (kind == kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc desc(Engine(), algorithm, x_desc, any, y_desc, strides,
                                                               dilation, before, after, forward, attr);
    plan.conv = dnnl::convolution_backward_data(desc);
    inner = desc.weights_desc(), scratchpad = desc.scratchpad_desc();
  } else {
    const dnnl::convolution_backward_weights::primitive_desc desc(Engine(), algorithm, x_desc, any, y_desc, strides,
                                                                  dilation, before, after, forward, attr);
    plan.conv = dnnl::convolution_backward_weights(desc);
    inner = desc.diff_weights_desc(), scratchpad = desc.scratchpad_desc();
  }
  plan.x = Bound(x_desc), plan.y = Bound(y_desc), plan.plain_kernel = Bound(plain), plan.scratchpad = Bound(scratchpad);
  plan.reordered = inner != plain;
  plan.kernel = Bound(inner);
  if (plan.reordered) {
    const auto& [from, to] = kind == kKernelGradient ? std::pair(inner, plain) : std::pair(plain, inner);
    plan.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
  }
  return plan;
}

// Memory that grows to the largest need and is used by one call at a time.
void* Workspace(size_t bytes) {
  static auto& space = *new std::vector<char>;
  if (space.size() < bytes + 64) std::vector<char>(bytes + 64).swap(space);
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(space.data()) + 63) / 64 * 64);
}

// Does what it is given, one call after the other: each uses every core, and GNU OpenMP keeps a team of threads for
// every thread that ever called it, which XLA's many threads would make many.
class Caller {
 public:
  void Do(std::function<void()> work) {
    std::packaged_task<void()> task(std::move(work));
    auto done = task.get_future();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    ready_.notify_one();
    done.get();  // throws what the work threw
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

// The plans used last are kept. All of this belongs to the caller's thread.
using Plans = std::list<std::pair<std::vector<int64_t>, Plan>>;
Plans& plans = *new Plans;
auto& places = *new std::map<std::vector<int64_t>, Plans::iterator>;
std::atomic<int64_t> calls{0}, images{0}, kept{0};  // counted for tests

Plan& FindPlan(Kind kind, const Dims& x, const Dims& kernel, const Dims& y, memory::data_type type,
               const std::vector<int64_t>& window, int threads) {
  std::vector<int64_t> key{kind, static_cast<int64_t>(type), threads};
  for (const Dims* part : {&x, &kernel, &y, &window}) key.insert(key.end(), part->begin(), part->end());
  if (auto found = places.find(key); found != places.end()) {
    plans.splice(plans.begin(), plans, found->second);
  } else {
    plans.emplace_front(key, MakePlan(kind, x, kernel, y, type, window));
    places[key] = plans.begin();
    while (static_cast<int64_t>(plans.size()) > JaxcnnConvLimit) {
      places.erase(plans.back().first);
      plans.pop_back();
    }
    kept = static_cast<int64_t>(plans.size());
  }
  return plans.front().second;
}

float* Floats(ffi::AnyBuffer& buffer) { return static_cast<float*>(buffer.untyped_data()); }
Dims DimsOf(const ffi::AnyBuffer& buffer) { return {buffer.dimensions().begin(), buffer.dimensions().end()}; }

// Whether it was a convolution of ours, depthwise, in groups or of few channels, and is done.
bool Shared(ffi::ThreadPool pool, int64_t kind, const std::vector<int64_t>& window, ffi::AnyBuffer& x,
            ffi::AnyBuffer& kernel, ffi::AnyBuffer& y) {
  const Dims in = DimsOf(x), size = DimsOf(kernel), out = DimsOf(y);
  const int64_t top = window[2], left = window[3];
  auto run = [&](const auto& shape) {
    ++calls, images += in[0];
    if (kind == kKernelGradient)
      shape.KernelGradient(pool, Floats(x), Floats(y), Floats(kernel));
    else if (kind == kInputGradient)
      shape.InputGradient(pool, Floats(y), Floats(kernel), Floats(x));
    else
      shape.Forward(pool, Floats(x), Floats(kernel), Floats(y));
    return true;
  };
  if (x.element_type() != ffi::DataType::F32 || window[0] != window[1] || window[6] != 1 || window[7] != 1) return false;
  const depthwise::Convolution depthwise{in[0], in[1], in[2], in[3], out[1], out[2], window[0], top, left};
  // 3x3 and as many features as channels
  const bool three = in[3] == out[3] && size[0] == 3 && size[1] == 3 && std::max({top, left, window[4], window[5]}) <= 2;
  if (three && window[8] == in[3] && depthwise.IsFaster(kind == kKernelGradient))
    return run(depthwise);
  const grouped::Convolution grouped{in[0], in[1], in[2], in[3], out[1], out[2], size[2], window[0], top, left};
  if (three && window[8] > 1 && grouped.IsFaster(kind == kInputGradient)) return run(grouped);
  const few_channels::Convolution few_channels{in[0], in[1], in[2], in[3], size[0], size[1], out[1], out[2], out[3], top, left};
  return window[0] == 1 && window[8] == 1 && std::max({top, window[4]}) < size[0] && std::max({left, window[5]}) < size[1] &&
         few_channels.IsFaster() && run(few_channels);
}

// Whether it was done in Winograd's form, one group after the other.
bool Winograd(int threads, int64_t kind, const std::vector<int64_t>& window, const Dims& x, const Dims& kernel,
              const Dims& y, float* x_data, float* kernel_data, float* y_data) {
  if (window[0] != 1 || window[1] != 1 || window[6] != 1 || window[7] != 1 || kernel[0] != 3 || kernel[1] != 3 ||
      std::max({window[2], window[3], window[4], window[5]}) > 2)
    return false;
  const int64_t groups = window[8], in = kernel[2], out = kernel[3] / groups;
  winograd::Convolution shape{x[0], x[1], x[2], in, y[1], y[2], out, window[2], window[3], x[3], y[3]};
  if (kind == kInputGradient)
    shape = {y[0], y[1], y[2], out, x[1], x[2], in, 2 - window[2], 2 - window[3], y[3], x[3]};
  if (!shape.IsFaster()) return false;
  float* space = static_cast<float*>(Workspace(4 * shape.workspace(kind == kKernelGradient, threads)));
  std::vector<float> own(groups > 1 ? 9 * in * out : 0);  // a group's kernel
  float* const weights = groups > 1 ? own.data() : kernel_data;
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t i = 0; groups > 1 && kind != kKernelGradient && i < 9 * in; ++i)
      std::copy_n(kernel_data + i * kernel[3] + group * out, out, weights + i * out);
    float *const from = x_data + group * in, *const to = y_data + group * out;
    if (kind == kForward) winograd::Forward(shape, from, weights, false, to, space, threads);
    if (kind == kInputGradient) winograd::Forward(shape, to, weights, true, from, space, threads);
    if (kind == kKernelGradient) winograd::KernelGradient(shape, from, to, weights, space, threads);
    for (int64_t i = 0; groups > 1 && kind == kKernelGradient && i < 9 * in; ++i)
      std::copy_n(weights + i * out, out, kernel_data + i * kernel[3] + group * out);
  }
  return true;
}

void Execute(int threads, int64_t kind, bool may_own, const std::vector<int64_t>& window, ffi::AnyBuffer& x,
             ffi::AnyBuffer& kernel, ffi::AnyBuffer& y) {
  const auto type = x.element_type() == ffi::DataType::BF16 ? memory::data_type::bf16 : memory::data_type::f32;
  ++calls, images += x.dimensions()[0];
  if (may_own && type == memory::data_type::f32) {
    if (Winograd(threads, kind, window, DimsOf(x), DimsOf(kernel), DimsOf(y), Floats(x), Floats(kernel), Floats(y))) return;
  }
  omp_set_num_threads(threads);
  Plan& plan = FindPlan(static_cast<Kind>(kind), DimsOf(x), DimsOf(kernel), DimsOf(y), type, window, threads);
  plan.x.set_data_handle(x.untyped_data());
  plan.y.set_data_handle(y.untyped_data());
  plan.plain_kernel.set_data_handle(kernel.untyped_data());
  const size_t scratchpad = (plan.scratchpad.get_desc().get_size() + 63) / 64 * 64;
  char* space = static_cast<char*>(Workspace(scratchpad + (plan.reordered ? plan.kernel.get_desc().get_size() : 0)));
  plan.scratchpad.set_data_handle(space);
  plan.kernel.set_data_handle(plan.reordered ? space + scratchpad : kernel.untyped_data());

  dnnl::stream stream(Engine());
  if (plan.reordered && kind != kKernelGradient)
    plan.reorder.execute(stream, {{DNNL_ARG_FROM, plan.plain_kernel}, {DNNL_ARG_TO, plan.kernel}});
  plan.conv.execute(stream, {{kind == kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, plan.x},
                             {kind == kKernelGradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, plan.kernel},
                             {kind == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, plan.y},
                             {DNNL_ARG_SCRATCHPAD, plan.scratchpad}});
  if (plan.reordered && kind == kKernelGradient)
    plan.reorder.execute(stream, {{DNNL_ARG_FROM, plan.kernel}, {DNNL_ARG_TO, plan.plain_kernel}});
  stream.wait();
}

// kind, then x (N, H, W, C), kernel (H, W, C / groups, features) and y (N, H', W', features): two given, one written.
ffi::Error Run(ffi::ThreadPool pool, int64_t kind, bool may_own, ffi::Span<const int64_t> window, ffi::AnyBuffer a,
               ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> result) {
  static const int cores = omp_get_max_threads();  // the cores of this process, or OMP_NUM_THREADS
  const int threads = std::clamp(static_cast<int>(pool.num_threads()), 1, cores);
  ffi::AnyBuffer &x = kind == kInputGradient ? *result : a, &kernel = kind == kKernelGradient ? *result : b,
                 &y = kind == kForward ? *result : kind == kInputGradient ? a : b;
  if (may_own && Shared(pool, kind, {window.begin(), window.end()}, x, kernel, y)) return ffi::Error::Success();
  try {
    static Caller* caller = new Caller;  // never destroyed, as all that it uses: calls may come until the process ends
    caller->Do([&] { Execute(threads, kind, may_own, {window.begin(), window.end()}, x, kernel, y); });
    return ffi::Error::Success();
  } catch (const std::exception& e) {
    return ffi::Error::Internal(std::string("convolution: ") + e.what());
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnConv, Run,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("kind")
                                  .Attr<bool>("own")
                                  .Attr<ffi::Span<const int64_t>>("window")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

// g and x (..., C), and mean, scale and bias (3, C), to (2, C): see batch_norm::GradientSums.
static ffi::Error RunSums(ffi::ThreadPool pool, bool relu, ffi::AnyBuffer g, ffi::AnyBuffer x, ffi::AnyBuffer affine,
                          ffi::Result<ffi::AnyBuffer> sums) {
  const int64_t channels = x.dimensions().back(), rows = static_cast<int64_t>(x.element_count()) / channels;
  const float *const mean = Floats(affine), *const scale = mean + channels, *const bias = scale + channels;
  batch_norm::GradientSums(pool, rows, channels, Floats(g), Floats(x), mean, scale, bias, relu, Floats(*sums));
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnSums, RunSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("relu")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

// x (..., C) to (2, C): see batch_norm::Moments.
static ffi::Error RunMoments(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> moments) {
  const int64_t channels = x.dimensions().back(), rows = static_cast<int64_t>(x.element_count()) / channels;
  batch_norm::Moments(pool, rows, channels, Floats(x), Floats(*moments));
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnMoments, RunMoments,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

// Calls made so far, the images in them, and the plans kept; for tests.
extern "C" void JaxcnnConvCounts(int64_t* counts) {
  counts[0] = calls, counts[1] = images, counts[2] = kept;
}
