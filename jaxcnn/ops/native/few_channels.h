// Convolutions at stride 1 of (N, H, W, C) images with few channels and features, such as those of LeNet. Each lane of a
// vector belongs to one of kLanes images, so that vectors are full even with a single channel.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel_for.h"
#include "vector.h"

namespace few_channels {

constexpr int kFeatureBlock = 4;  // features that are computed together

// Returns how many outputs, or taps of a kernel, a microkernel accumulates at a time for a number of features. Its registers
// hold the sums, the operand of each output or tap, and one more value. With one feature no operand is used twice, and three
// quarters of the registers hold sums.
constexpr int AccumulatorRows(int features) {
  return features == 1 ? 3 * kRegisters / 4 : (kRegisters - 1) / (features + 1);
}

// Returns the shuffle that computes one of two rows whose off-diagonal blocks of `bit` lanes are exchanged: the second row
// if `high`, and otherwise the first one.
template <int bit, int... lane>
constexpr LaneIndices SwapLanes(bool high, std::integer_sequence<int, lane...>) {
  return high ? LaneIndices{(lane & bit ? kLanes + lane : lane + bit)...}
              : LaneIndices{(lane & bit ? kLanes + lane - bit : lane)...};
}

// Transposes a kLanes x kLanes matrix in place.
template <int bit = 1>
inline void Transpose(Vec* t) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
  constexpr LaneIndices low = SwapLanes<bit>(false, lanes), high = SwapLanes<bit>(true, lanes);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & bit)) {
      const Vec a = t[i], b = t[i + bit];
      t[i] = __builtin_shuffle(a, b, low), t[i + bit] = __builtin_shuffle(a, b, high);
    }
  if constexpr (2 * bit < kLanes) Transpose<2 * bit>(t);
}

// Interleaves `count` values of each of up to kLanes images, which are `image_stride` floats apart: vector i of the result
// holds value i of each image. If there are fewer than kLanes images, the remaining lanes are 0.
inline void Interleave(const float* images, int64_t image_stride, int64_t num_images, int64_t count, float* vectors) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vec t[kLanes];
    for (int n = 0; n < kLanes; ++n) t[n] = n < num_images ? Load(images + n * image_stride + i) : Vec{};
    Transpose(t);
    for (int n = 0; n < kLanes; ++n) Store(vectors + (i + n) * kLanes, t[n]);
  }
  for (; i < count; ++i)
    for (int n = 0; n < kLanes; ++n) vectors[i * kLanes + n] = n < num_images ? images[n * image_stride + i] : 0;
}

// Inverts Interleave.
inline void Deinterleave(const float* vectors, int64_t image_stride, int64_t num_images, int64_t count, float* images) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vec t[kLanes];
    for (int n = 0; n < kLanes; ++n) t[n] = Load(vectors + (i + n) * kLanes);
    Transpose(t);
    for (int n = 0; n < num_images; ++n) Store(images + n * image_stride + i, t[n]);
  }
  for (; i < count; ++i)
    for (int n = 0; n < num_images; ++n) images[n * image_stride + i] = vectors[i * kLanes + n];
}

// kLanes interleaved images (padded_h, padded_w, c), which are images (h, w, c) padded with zeros.
struct PaddedImages {
  int64_t h, w, c, pad_top, pad_left, padded_h, padded_w;
  int64_t size() const { return padded_h * padded_w * c * kLanes; }
  int64_t row_stride() const { return padded_w * c; }  // in vectors
  void Fill(const float* images, int64_t num_images, float* data) const {
    std::fill_n(data, size(), 0.f);
    for (int64_t i = 0; i < h && i + pad_top < padded_h; ++i)
      Interleave(images + i * w * c, h * w * c, num_images, std::min(w, padded_w - pad_left) * c,
                 data + ((i + pad_top) * padded_w + pad_left) * c * kLanes);
  }
  const float* Row(const float* data, int64_t y) const { return data + y * padded_w * c * kLanes; }
};

// Computes `outputs` outputs of a row for `features` features: sums[o][f] is the sum over r < rows and t < taps of
// x[r * row_stride + o * c + t] k[(r * taps + t) * k_stride + f], where the elements of x and sums are vectors and those of
// k are numbers.
template <int outputs, int features>
void ForwardMicrokernel(const float* x, int64_t c, int64_t rows, int64_t row_stride, int64_t taps, const float* k,
                        int64_t k_stride, float* sums, int64_t sums_stride) {
  Vec s[outputs][features] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t t = 0; t < taps; ++t, k += k_stride) {
      const float* const first = x + (r * row_stride + t) * kLanes;
      Vec v[outputs];
#pragma GCC unroll 24
      for (int o = 0; o < outputs; ++o)
        v[o] = features > 1 ? LoadToRegister(first + o * c * kLanes) : Load(first + o * c * kLanes);
#pragma GCC unroll 8
      for (int f = 0; f < features; ++f)
#pragma GCC unroll 24
        for (int o = 0; o < outputs; ++o) s[o][f] += v[o] * k[f];
    }
#pragma GCC unroll 24
  for (int o = 0; o < outputs; ++o)
#pragma GCC unroll 8
    for (int f = 0; f < features; ++f) Store(sums + (o * sums_stride + f) * kLanes, s[o][f]);
}

// Adds the products of a row of x with a row of y to the gradient of the kernel for some taps and features: sums[t][f] is
// increased by the sum over o < outputs of x[o * c + t] y[o * y_stride + f], where all elements are vectors.
template <int taps, int features>
void KernelGradientMicrokernel(const float* x, int64_t c, int64_t outputs, const float* y, int64_t y_stride, float* sums,
                               int64_t sums_stride) {
  Vec s[taps][features];
#pragma GCC unroll 16
  for (int t = 0; t < taps; ++t)
#pragma GCC unroll 8
    for (int f = 0; f < features; ++f) s[t][f] = Load(sums + (t * sums_stride + f) * kLanes);
  for (int64_t o = 0; o < outputs; ++o, x += c * kLanes, y += y_stride * kLanes) {
    Vec v[taps];
#pragma GCC unroll 16
    for (int t = 0; t < taps; ++t) v[t] = LoadToRegister(x + t * kLanes);
#pragma GCC unroll 8
    for (int f = 0; f < features; ++f) {
      const Vec b = LoadToRegister(y + f * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < taps; ++t) s[t][f] += v[t] * b;
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < taps; ++t)
#pragma GCC unroll 8
    for (int f = 0; f < features; ++f) Store(sums + (t * sums_stride + f) * kLanes, s[t][f]);
}

// Divides the range [first, count) into blocks, of `size` as long as they fit and then smaller ones, and calls
// visit(begin, std::integral_constant<int, block>) for each.
template <int size = kFeatureBlock, typename Visit>
void ForEachBlock(int64_t count, const Visit& visit, int64_t first = 0) {
  for (; first + size <= count; first += size) visit(first, std::integral_constant<int, size>());
  if constexpr (size > 1) ForEachBlock<size - 1>(count, visit, first);
}

// A convolution y = x * kernel of images x (n, h, w, c) with a kernel (kh, kw, c, features).
struct Convolution {
  int64_t n, h, w, c, kh, kw, out_h, out_w, features;
  int64_t pad_top, pad_left;

  PaddedImages Padded() const { return {h, w, c, pad_top, pad_left, out_h + kh - 1, out_w + kw - 1}; }
  // Returns whether these kernels support the convolution and are faster than oneDNN's (docs/performance-log.md).
  bool IsFaster() const {
    return kHasFma && n >= kLanes / 2 && c <= 8 && features <= 16 &&
           std::max(Padded().size(), out_w * features * kLanes) <= 1 << 18;
  }

  // Calls visit(batch, first_image, num_images) in parallel for each batch of up to kLanes images.
  template <typename Visit>
  void ForEachBatch(xla::ffi::ThreadPool pool, const Visit& visit) const {
    ParallelFor(pool, (n + kLanes - 1) / kLanes, [&](int64_t batch) {
      visit(batch, batch * kLanes, std::min<int64_t>(kLanes, n - batch * kLanes));
    });
  }

  void Forward(xla::ffi::ThreadPool pool, const float* x, const float* kernel, float* y) const {
    const PaddedImages padded = Padded();
    const Images<const float> inputs{x, h, w, c};
    const Images<float> outputs{y, out_h, out_w, features};
    ForEachBatch(pool, [&](int64_t, int64_t first, int64_t num_images) {
      thread_local std::vector<float> space;
      space.resize(std::max<size_t>(space.size(), padded.size() + out_w * features * kLanes));
      float* const data = space.data();
      float* const out_row = data + padded.size();
      padded.Fill(inputs.At(first, 0, 0), num_images, data);
      for (int64_t out_y = 0; out_y < out_h; ++out_y) {
        // The rows of the kernel that overlap the image rather than the padding.
        const int64_t begin = std::max<int64_t>(0, pad_top - out_y), end = std::min(kh, h + pad_top - out_y);
        ForEachBlock(features, [&](int64_t f, auto block) {
          constexpr int kOutputs = AccumulatorRows(block.value);
          auto compute = [&](int64_t out_x, auto outputs) {
            ForwardMicrokernel<outputs.value, block.value>(
                padded.Row(data, out_y + begin) + out_x * c * kLanes, c, end - begin, padded.row_stride(), kw * c,
                kernel + begin * kw * c * features + f, features, out_row + (out_x * features + f) * kLanes, features);
          };
          const int64_t step = out_w < kOutputs ? 1 : kOutputs;
          for (int64_t out_x = 0; out_x < out_w; out_x += step)
            if (step == 1 || out_x + 1 == out_w)
              compute(out_x, std::integral_constant<int, 1>());
            else  // the last block may overlap the previous one
              compute(std::min(out_x, out_w - kOutputs), std::integral_constant<int, kOutputs>());
        });
        Deinterleave(out_row, out_h * out_w * features, num_images, out_w * features, outputs.At(first, out_y, 0));
      }
    });
  }

  void InputGradient(xla::ffi::ThreadPool pool, const float* y, const float* kernel, float* x) const {
    std::vector<float> flipped(kh * kw * c * features);
    for (int64_t i = 0; i < kh * kw; ++i)
      for (int64_t in = 0; in < c; ++in)
        for (int64_t out = 0; out < features; ++out)
          flipped[((kh * kw - 1 - i) * features + out) * c + in] = kernel[(i * c + in) * features + out];
    Transposed().Forward(pool, y, flipped.data(), x);
  }
  Convolution Transposed() const {
    return {n, out_h, out_w, features, kh, kw, h, w, c, kh - 1 - pad_top, kw - 1 - pad_left};
  }

  void KernelGradient(xla::ffi::ThreadPool pool, const float* x, const float* y, float* kernel) const {
    const PaddedImages padded = Padded();
    const Images<const float> inputs{x, h, w, c}, outputs{y, out_h, out_w, features};
    const int64_t size = kh * kw * c * features, taps = kw * c;
    std::vector<float> batch_sums((n + kLanes - 1) / kLanes * size);
    ForEachBatch(pool, [&](int64_t batch, int64_t first, int64_t num_images) {
      thread_local std::vector<float> space;
      space.resize(std::max<size_t>(space.size(), padded.size() + (out_w * features + size) * kLanes));
      float* const data = space.data();
      float* const out_row = data + padded.size();
      float* const sums = out_row + out_w * features * kLanes;
      padded.Fill(inputs.At(first, 0, 0), num_images, data);
      std::fill_n(sums, size * kLanes, 0.f);
      for (int64_t out_y = 0; out_y < out_h; ++out_y) {
        Interleave(outputs.At(first, out_y, 0), out_h * out_w * features, num_images, out_w * features, out_row);
        for (int64_t r = 0; r < kh; ++r)
          ForEachBlock(features, [&](int64_t f, auto block) {
            ForEachBlock<std::min(AccumulatorRows(block.value), 5)>(taps, [&](int64_t t, auto tap_block) {
              KernelGradientMicrokernel<tap_block.value, block.value>(
                  padded.Row(data, out_y + r) + t * kLanes, c, out_w, out_row + f * kLanes, features,
                  sums + ((r * taps + t) * features + f) * kLanes, features);
            });
          });
      }
      for (int64_t i = 0; i < size; ++i)
        for (int lane = 0; lane < kLanes; ++lane) batch_sums[batch * size + i] += sums[i * kLanes + lane];
    });
    std::copy_n(batch_sums.data(), size, kernel);
    for (size_t i = size; i < batch_sums.size(); ++i) kernel[i % size] += batch_sums[i];
  }
};

}  // namespace few_channels
