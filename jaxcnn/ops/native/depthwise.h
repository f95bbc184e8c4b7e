// Depthwise 3x3 convolutions of (N, H, W, C) images. A vector holds kLanes channels of one pixel. The rows are divided among
// XLA's threads; the result does not depend on the number of threads.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "channel_blocks.h"
#include "parallel_for.h"
#include "vector.h"

namespace depthwise {

// A convolution y = x * kernel of images x (n, h, w, c) with a kernel (3, 3, c).
struct Convolution {
  int64_t n, h, w, c, out_h, out_w;
  int64_t stride, pad_top, pad_left;

  // Returns whether these kernels support the convolution and are faster than oneDNN's (docs/performance-log.md).
  bool IsFaster(bool kernel_gradient) const { return kHasFma && c % kLanes == 0 && (stride == 1 || kernel_gradient); }

  // Computes y from x at stride 1. With `flip`, the kernel is rotated by 180 degrees.
  void Forward(xla::ffi::ThreadPool pool, const float* x, const float* kernel, float* y, bool flip = false) const {
    constexpr int kOutputs = 4, kInputs = kOutputs + 2;  // pixels of y that are computed together, and of x that they need
    const int64_t rows = n * out_h, slices = std::min<int64_t>(rows, 64);
    ParallelFor(pool, slices, [&](int64_t slice) {
      const Images<const float> inputs{x, h, w, c};
      const Images<float> outputs{y, out_h, out_w, c};
      for (int64_t row = SliceBegin(rows, slices, slice); row < SliceBegin(rows, slices, slice + 1); ++row) {
        const int64_t image = row / out_h, out_y = row % out_h;
        for (int64_t out_x = 0; out_x < out_w; out_x += kOutputs) {
          const int64_t in_x = out_x - pad_left;
          const bool inside = in_x >= 0 && in_x + kInputs <= w;
          for (int64_t channel = 0; channel < c; channel += kLanes) {
            Vec sums[kOutputs] = {};
            for (int i = 0; i < 3; ++i) {
              const int64_t in_y = out_y + i - pad_top;
              if (in_y < 0 || in_y >= h) continue;
              const float* const pixels = inputs.At(image, in_y, in_x, channel);
              Vec v[kInputs], k[3];
              for (int j = 0; j < 3; ++j) k[j] = Load(kernel + (flip ? 8 - 3 * i - j : 3 * i + j) * c + channel);
              if (inside) {
#pragma GCC unroll 16
                for (int m = 0; m < kInputs; ++m) v[m] = Load(pixels + m * c);
              } else {
                for (int m = 0; m < kInputs; ++m) v[m] = in_x + m >= 0 && in_x + m < w ? Load(pixels + m * c) : Vec{};
              }
#pragma GCC unroll 4
              for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 3
                for (int j = 0; j < 3; ++j) sums[o] += v[o + j] * k[j];
            }
            for (int o = 0; o < kOutputs && out_x + o < out_w; ++o)
              Store(outputs.At(image, out_y, out_x + o, channel), sums[o]);
          }
        }
      }
    });
  }

  void InputGradient(xla::ffi::ThreadPool pool, const float* y, const float* kernel, float* x) const {
    Convolution{n, out_h, out_w, c, h, w, 1, 2 - pad_top, 2 - pad_left}.Forward(pool, y, kernel, x, true);
  }

  void KernelGradient(xla::ffi::ThreadPool pool, const float* x, const float* y, float* kernel) const {
    const int64_t slices = std::min<int64_t>(n, 16), size = 9 * c;
    std::vector<float> slice_sums(slices * size);
    ParallelFor(pool, slices, [&](int64_t slice) {
      const Images<const float> inputs{x, h, w, c}, outputs{y, out_h, out_w, c};
      for (int64_t row = SliceBegin(n, slices, slice) * out_h; row < SliceBegin(n, slices, slice + 1) * out_h; ++row) {
        const int64_t image = row / out_h, out_y = row % out_h;
        ForEachChannelBlock(c, [&](int64_t channel, auto vectors) {
          constexpr int count = decltype(vectors)::value;
          for (int i = 0; i < 3; ++i) {
            const int64_t in_y = out_y * stride + i - pad_top;
            if (in_y < 0 || in_y >= h) continue;
            for (int j = 0; j < 3; ++j) {
              // The columns of y whose input column, out_x * stride + j - pad_left, is inside the image.
              const int64_t first = std::max<int64_t>(0, (pad_left - j + stride - 1) / stride);
              const int64_t end = std::min(out_w, (w - 1 + pad_left - j + stride) / stride);
              float* const sums = slice_sums.data() + slice * size + (3 * i + j) * c + channel;
              const float* a = inputs.At(image, in_y, first * stride + j - pad_left, channel);
              const float* b = outputs.At(image, out_y, first, channel);
              Vec s[count];
              for (int v = 0; v < count; ++v) s[v] = Load(sums + v * kLanes);
              for (int64_t out_x = first; out_x < end; ++out_x, a += stride * c, b += c)
#pragma GCC unroll 4
                for (int v = 0; v < count; ++v) s[v] += Load(a + v * kLanes) * Load(b + v * kLanes);
              for (int v = 0; v < count; ++v) Store(sums + v * kLanes, s[v]);
            }
          }
        });
      }
    });
    std::copy_n(slice_sums.data(), size, kernel);
    for (int64_t slice = 1; slice < slices; ++slice)
      for (int64_t i = 0; i < size; ++i) kernel[i] += slice_sums[slice * size + i];
  }
};

}  // namespace depthwise
