// Convolutions of 8-bit integers by oneDNN, with what follows them: requantisation, a residual sum, and an activation.
// Layers are registered with their kernels, which oneDNN reorders once for each of its layouts, and are called by a number.

#pragma once

#include <omp.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

namespace quantized {

using dnnl::memory;
using Dims = memory::dims;

enum Activation : int64_t { kNone, kRelu, kClip };  // kClip: to the range from 0 to Scales::upper

inline dnnl::engine& Engine() {
  static auto& engine = *new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// The settings of a layer, in the order of `_Settings` in quantized_conv.py.
struct Settings {
  int64_t height, width, in, out, groups;  // of the kernel (height, width, in, out), with the channels of a group
  int64_t stride_y, stride_x, top, left, bottom, right, dilation_y, dilation_x;
  int64_t activation;
  int64_t residual;  // 0: none, 1: unsigned, 2: signed
};

// The values of one unit of the integers, and the upper limit of the activation. The scale of an output in float32 is 1.
struct Scales {
  float input, output, residual, upper;
};

struct Primitive {
  dnnl::convolution_forward convolution;
  memory x, y, kernel, scratchpad;
};

class Layer {
 public:
  Layer(const Settings& settings, const Scales& scales, const int8_t* kernel, const float* kernel_scales, const float* bias)
      : settings_(settings),
        kernel_(kernel, kernel + settings.height * settings.width * settings.in * settings.out),
        kernel_scales_(kernel_scales, kernel_scales + settings.out),
        bias_(bias, bias + settings.out),
        scales_(scales) {}

  const Settings& settings() const { return settings_; }

  // Computes y from x, both (N, H, W, C). With a residual, y holds it before the call, in 8-bit integers.
  void Run(int threads, const Dims& x_dims, memory::data_type x_type, void* x, const Dims& y_dims, memory::data_type y_type,
           void* y, void* (*workspace)(size_t)) {
    omp_set_num_threads(threads);
    Primitive& primitive = GetPrimitive(threads, x_dims, x_type, y_dims, y_type);
    primitive.x.set_data_handle(x);
    primitive.y.set_data_handle(y);
    primitive.scratchpad.set_data_handle(workspace(primitive.scratchpad.get_desc().get_size()));
    dnnl::stream stream(Engine());
    std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, primitive.x},
                                              {DNNL_ARG_WEIGHTS, primitive.kernel},
                                              {DNNL_ARG_BIAS, Vector(bias_)},
                                              {DNNL_ARG_DST, primitive.y},
                                              {DNNL_ARG_SCRATCHPAD, primitive.scratchpad},
                                              {DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC, Scalar(&scales_.input)},
                                              {DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, Vector(kernel_scales_)}};
    if (y_type != memory::data_type::f32)
      arguments.insert({DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST, Scalar(&scales_.output)});
    primitive.convolution.execute(stream, arguments);
    stream.wait();
  }

 private:
  static memory Vector(std::vector<float>& values) {
    return memory({{static_cast<int64_t>(values.size())}, memory::data_type::f32, memory::format_tag::x}, Engine(),
                  values.data());
  }
  static memory Scalar(float* value) {
    return memory({{1}, memory::data_type::f32, memory::format_tag::x}, Engine(), value);
  }

  Primitive& GetPrimitive(int threads, const Dims& x, memory::data_type x_type, const Dims& y, memory::data_type y_type) {
    std::vector<int64_t> key{threads, static_cast<int64_t>(x_type), static_cast<int64_t>(y_type)};
    key.insert(key.end(), x.begin(), x.end());
    auto cached = primitives_.find(key);
    if (cached != primitives_.end()) return cached->second;
    const Settings& s = settings_;
    const int64_t out = s.out / s.groups;
    Dims sizes{out, s.in, s.height, s.width}, strides{1, s.out, s.width * s.in * s.out, s.in * s.out};
    if (s.groups > 1) {
      sizes.insert(sizes.begin(), s.groups);
      strides.insert(strides.begin(), out);
    }
    auto nhwc = [](const Dims& d, memory::data_type type) {
      return memory::desc({d[0], d[3], d[1], d[2]}, type, memory::format_tag::nhwc);
    };
    const memory::desc jax_layout(sizes, memory::data_type::s8, strides);
    const memory::desc any_layout(sizes, memory::data_type::s8, memory::format_tag::any);
    const memory::desc bias({s.out}, memory::data_type::f32, memory::format_tag::x);
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    attr.set_scales_mask(DNNL_ARG_SRC, 0);
    attr.set_scales_mask(DNNL_ARG_WEIGHTS, s.groups > 1 ? 3 : 1);
    if (y_type != memory::data_type::f32) attr.set_scales_mask(DNNL_ARG_DST, 0);
    dnnl::post_ops post_ops;
    if (s.residual)
      post_ops.append_sum(scales_.residual, 0, s.residual == 2 ? memory::data_type::s8 : memory::data_type::u8);
    if (s.activation == kRelu) post_ops.append_eltwise(dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
    if (s.activation == kClip) post_ops.append_eltwise(dnnl::algorithm::eltwise_clip, 0.0f, scales_.upper);
    attr.set_post_ops(post_ops);
    const dnnl::convolution_forward::primitive_desc description(
        Engine(), dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, nhwc(x, x_type), any_layout, bias,
        nhwc(y, y_type), {s.stride_y, s.stride_x}, {s.dilation_y - 1, s.dilation_x - 1}, {s.top, s.left},
        {s.bottom, s.right}, attr);
    Primitive primitive;
    primitive.convolution = dnnl::convolution_forward(description);
    primitive.x = memory(description.src_desc(), Engine(), nullptr);
    primitive.y = memory(description.dst_desc(), Engine(), nullptr);
    primitive.scratchpad = memory(description.scratchpad_desc(), Engine(), nullptr);
    for (const auto& [_, other] : primitives_)  // batches of other sizes often have the same layout
      if (other.kernel.get_desc() == description.weights_desc()) primitive.kernel = other.kernel;
    if (!primitive.kernel) {
      primitive.kernel = memory(description.weights_desc(), Engine());
      memory source(jax_layout, Engine(), kernel_.data());
      dnnl::stream stream(Engine());
      dnnl::reorder(source, primitive.kernel).execute(stream, source, primitive.kernel);
      stream.wait();
    }
    return primitives_.emplace(key, std::move(primitive)).first->second;
  }

  Settings settings_;
  std::vector<int8_t> kernel_;
  std::vector<float> kernel_scales_, bias_;
  Scales scales_;
  std::map<std::vector<int64_t>, Primitive> primitives_;
};

// The registered layers. Any thread may register one; the thread of the executor runs them.
class Registry {
 public:
  int64_t Add(std::shared_ptr<Layer> layer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    layers_[++count_] = std::move(layer);
    return count_;
  }
  void Remove(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    layers_.erase(number);
  }
  std::shared_ptr<Layer> Get(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto layer = layers_.find(number);
    if (layer == layers_.end()) throw std::runtime_error("the quantised layer does not exist any more");
    return layer->second;
  }

 private:
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<Layer>> layers_;
  int64_t count_ = 0;
};

}  // namespace quantized
