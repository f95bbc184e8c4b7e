// 3x3 convolutions of (N, H, W, C) images in groups of few channels, as in ResNeXt. A vector accumulates kLanes features of
// one pixel over the channels of their groups. The work is divided among XLA's threads; the result does not depend on the
// number of threads.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "parallel_for.h"
#include "vector.h"

namespace grouped {

constexpr int64_t kBandFloats = 6144;  // size of the rows that are processed together, which fit the L1 cache
constexpr int kChannelBlock = 4;       // channels whose kernel gradients are computed together

// Returns for each lane the first lane of its group. The number of channels of a group must be a power of two.
inline LaneIndices GroupBegin(int64_t group) {
  LaneIndices begin;
  for (int32_t lane = 0; lane < kLanes; ++lane) begin[lane] = lane & -static_cast<int32_t>(group);
  return begin;
}

// Returns in each lane channel c of the group of the lane. With `one_group`, all lanes belong to the same group, at which
// `pixel` points; otherwise `lanes` selects the channel for each lane.
template <bool one_group>
inline Vec BroadcastChannel(const float* pixel, int64_t c, const LaneIndices& lanes) {
  return one_group ? pixel[c] - Vec{} : __builtin_shuffle(Load(pixel), lanes);
}

// Computes kLanes features of `outputs` outputs of a row from 3 rows of x and a kernel [3][group][3][kLanes]. The pixels of
// y are `y_stride` floats apart, and those of x `pixel` floats.
template <bool one_group, int stride, int outputs>
void ForwardMicrokernel(const float* x, int64_t row_stride, int64_t pixel, int64_t group, const float* kernel, float* y,
                        int64_t y_stride) {
  Vec sums[outputs] = {};
  const LaneIndices begin = GroupBegin(group);
  for (int i = 0; i < 3; ++i, x += row_stride)
    for (int64_t c = 0; c < group; ++c, kernel += 3 * kLanes) {
      const Vec k[3] = {Load(kernel), Load(kernel + kLanes), Load(kernel + 2 * kLanes)};
      const LaneIndices lanes = begin + static_cast<int32_t>(c);
#pragma GCC unroll 24
      for (int m = 0; m < (outputs - 1) * stride + 3; ++m) {
        const Vec v = BroadcastChannel<one_group>(x + m * pixel, c, lanes);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j)
          if (m >= j && (m - j) % stride == 0 && (m - j) / stride < outputs) sums[(m - j) / stride] += v * k[j];
      }
    }
#pragma GCC unroll 8
  for (int o = 0; o < outputs; ++o) Store(y + o * y_stride, sums[o]);
}

// Adds to kernel[kChannelBlock][3][kLanes] the products of the channels c to c + kChannelBlock of x with rows
// y[columns][kLanes], summed over rows and columns. Each row of y must be preceded and followed by zeros.
template <bool one_group, int stride>
void KernelGradientMicrokernel(const float* x, int64_t x_row_stride, int64_t pixel, int64_t group, int64_t c, const float* y,
                               int64_t y_row_stride, int64_t rows, int64_t columns, float* kernel) {
  Vec sums[kChannelBlock][3] = {};
  LaneIndices lanes[kChannelBlock];
  for (int i = 0; i < kChannelBlock; ++i) lanes[i] = GroupBegin(group) + static_cast<int32_t>(c + i);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) {
      Vec gradients[2 / stride + 1];
#pragma GCC unroll 3
      for (int j = 0; j <= 2 / stride; ++j) gradients[j] = LoadToRegister(y + row * y_row_stride + (column - j) * kLanes);
#pragma GCC unroll 2
      for (int u = 0; u < stride; ++u)
#pragma GCC unroll 8
        for (int i = 0; i < kChannelBlock; ++i) {
          const Vec v =
              BroadcastChannel<one_group>(x + row * x_row_stride + (column * stride + u) * pixel, c + i, lanes[i]);
#pragma GCC unroll 3
          for (int j = u; j < 3; j += stride) sums[i][j] += v * gradients[(j - u) / stride];
        }
    }
#pragma GCC unroll 8
  for (int i = 0; i < kChannelBlock; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j, kernel += kLanes) Store(kernel, Load(kernel) + sums[i][j]);
}

// Copies `count` pixels of `channels` floats.
inline void CopyPixels(const float* source, int64_t source_stride, int64_t count, int64_t channels, float* target,
                       int64_t target_stride) {
  for (; count > 0; --count, source += source_stride, target += target_stride)
    for (int64_t c = 0; c < channels; c += kLanes) Store(target + c, Load(source + c));
}

// A convolution y = x * kernel of images x (n, h, w, c) in groups of `group` channels and as many features, with a kernel
// (3, 3, group, c). A thread processes one band at a time, which is a copy of some rows and `block()` channels of an image,
// padded with zeros.
struct Convolution {
  int64_t n, h, w, c, out_h, out_w, group;
  int64_t stride, pad_top, pad_left;

  bool one_group() const { return group >= kLanes; }                // whether all lanes of a vector belong to one group
  int64_t block() const { return std::max<int64_t>(group, kLanes); }  // channels that are processed together
  int64_t band_columns() const { return out_w + 2 / stride; }         // columns of y, and the padding that sums read
  int64_t band_row_stride() const { return band_columns() * stride * block(); }
  int64_t band_rows() const {  // rows of y
    return std::clamp<int64_t>((kBandFloats / band_row_stride() - 3) / stride + 1, 1, out_h);
  }
  int64_t band_size() const { return ((band_rows() - 1) * stride + 3) * band_row_stride(); }

  // Returns whether these kernels support the convolution and are mostly faster than oneDNN's and Winograd's algorithm
  // (docs/performance-log.md).
  bool IsFaster(bool input_gradient) const {
    return kHasFma && group >= 4 && group <= 32 && c % block() == 0 && block() % group == 0 && block() % kLanes == 0 &&
           (stride == 1 || (stride == 2 && !input_gradient)) && band_size() <= 1 << 18;
  }

  // Copies to `band` the rows of image i of x that contribute to `count` rows of y from row `out_y` on, padded with zeros.
  // The copied channels are `first` to first + block().
  void FillBand(const float* x, int64_t i, int64_t out_y, int64_t count, int64_t first, float* band) const {
    const Images<const float> inputs{x, h, w, c};
    const int64_t row_stride = band_row_stride(), end = std::min(w, band_columns() * stride - pad_left);
    for (int64_t y = out_y * stride - pad_top, last = y + (count - 1) * stride + 3; y < last; ++y, band += row_stride) {
      if (y < 0 || y >= h) {
        std::fill_n(band, row_stride, 0.f);
        continue;
      }
      std::fill_n(band, pad_left * block(), 0.f);
      std::fill_n(band + (end + pad_left) * block(), row_stride - (end + pad_left) * block(), 0.f);
      CopyPixels(inputs.At(i, y, 0, first), c, end, block(), band + pad_left * block(), block());
    }
  }

  // Calls function(one_group, stride), where both arguments are compile-time constants.
  template <typename Function>
  void WithConstants(const Function& function) const {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    if (one_group())
      stride == 1 ? function(std::true_type(), One()) : function(std::true_type(), Two());
    else
      stride == 1 ? function(std::false_type(), One()) : function(std::false_type(), Two());
  }

  // Returns the kernel in the layout [c / kLanes][3][group][3][kLanes]. With `flip`, the kernel is rotated by 180 degrees
  // and its channels and features are exchanged, so that a convolution with it computes the input gradient.
  std::vector<float> PackKernel(xla::ffi::ThreadPool pool, const float* kernel, bool flip) const {
    std::vector<float> packed(9 * group * c);
    ParallelFor(pool, c / kLanes, [&](int64_t block) {
      float* weights = packed.data() + block * 9 * group * kLanes;
      for (int i = 0; i < 3; ++i)
        for (int64_t in = 0; in < group; ++in)
          for (int j = 0; j < 3; ++j, weights += kLanes)
            for (int lane = 0; lane < kLanes; ++lane) {
              const int64_t out = block * kLanes + lane;
              weights[lane] = flip ? kernel[((8 - 3 * i - j) * group + out % group) * c + out / group * group + in]
                                   : kernel[((3 * i + j) * group + in) * c + out];
            }
    });
    return packed;
  }

  // Computes y from x. `flip` is explained at PackKernel.
  void Forward(xla::ffi::ThreadPool pool, const float* x, const float* kernel, float* y, bool flip = false) const {
    const std::vector<float> packed = PackKernel(pool, kernel, flip);
    const Images<float> outputs{y, out_h, out_w, c};
    const int64_t bands = (out_h + band_rows() - 1) / band_rows();
    WithConstants([&](auto one_group, auto stride) {
      const int64_t step = out_w < 4 ? 1 : out_w < 8 ? 4 : 8;  // outputs that are computed together
      const auto microkernel = step == 1   ? ForwardMicrokernel<one_group.value, stride.value, 1>
                               : step == 4 ? ForwardMicrokernel<one_group.value, stride.value, 4>
                                           : ForwardMicrokernel<one_group.value, stride.value, 8>;
      ParallelFor(pool, n * bands, [&](int64_t item) {
        thread_local std::vector<float> space;
        space.resize(std::max<size_t>(space.size(), band_size()));
        const int64_t i = item / bands, out_y = item % bands * band_rows(), count = std::min(band_rows(), out_h - out_y);
        for (int64_t first = 0; first < c; first += block()) {
          FillBand(x, i, out_y, count, first, space.data());
          for (int64_t f = first; f < first + block(); f += kLanes)
            for (int64_t row = 0; row < count; ++row)
              for (int64_t begin = 0; begin < out_w; begin += step) {
                const int64_t out_x = std::min(begin, out_w - step);  // the last block may overlap the previous one
                microkernel(space.data() + (row * band_row_stride() + out_x * block()) * stride.value, band_row_stride(),
                            block(), group, packed.data() + f * 9 * group, outputs.At(i, out_y + row, out_x, f), c);
              }
        }
      });
    });
  }

  void InputGradient(xla::ffi::ThreadPool pool, const float* y, const float* kernel, float* x) const {
    Convolution{n, out_h, out_w, c, h, w, group, 1, 2 - pad_top, 2 - pad_left}.Forward(pool, y, kernel, x, true);
  }

  void KernelGradient(xla::ffi::ThreadPool pool, const float* x, const float* y, float* kernel) const {
    const Images<const float> outputs{y, out_h, out_w, c};
    const int64_t slices = std::min<int64_t>(n, 16), size = 9 * group * c;
    const int64_t y_row_stride = (band_columns() + 2 / stride) * kLanes;
    std::vector<float> slice_sums(slices * size);  // for each slice [c / kLanes][3][group][3][kLanes]
    WithConstants([&](auto one_group, auto stride) {
      constexpr int kPadding = 2 / stride.value * kLanes;  // zeros before a row of y
      ParallelFor(pool, slices, [&](int64_t slice) {
        thread_local std::vector<float> space;
        space.resize(std::max<size_t>(space.size(), band_size() + band_rows() * y_row_stride));
        float* const y_rows = space.data() + band_size();
        std::fill_n(y_rows, band_rows() * y_row_stride, 0.f);
        for (int64_t i = SliceBegin(n, slices, slice); i < SliceBegin(n, slices, slice + 1); ++i)
          for (int64_t out_y = 0, count; out_y < out_h; out_y += count) {
            count = std::min(band_rows(), out_h - out_y);
            for (int64_t first = 0; first < c; first += block()) {
              FillBand(x, i, out_y, count, first, space.data());
              for (int64_t f = first; f < first + block(); f += kLanes) {
                for (int64_t row = 0; row < count; ++row)
                  CopyPixels(outputs.At(i, out_y + row, 0, f), c, out_w, kLanes, y_rows + row * y_row_stride + kPadding,
                             kLanes);
                float* sums = slice_sums.data() + slice * size + f * 9 * group;
                for (int k = 0; k < 3; ++k)
                  for (int64_t in = 0; in < group; in += kChannelBlock, sums += kChannelBlock * 3 * kLanes)
                    KernelGradientMicrokernel<one_group.value, stride.value>(
                        space.data() + k * band_row_stride(), stride.value * band_row_stride(), block(), group, in,
                        y_rows + kPadding, y_row_stride, count, band_columns(), sums);
              }
            }
          }
      });
    });
    ParallelFor(pool, c / kLanes, [&](int64_t block) {
      const float* sums = slice_sums.data() + block * 9 * group * kLanes;
      for (int k = 0; k < 3; ++k)
        for (int64_t in = 0; in < group; ++in)
          for (int j = 0; j < 3; ++j, sums += kLanes) {
            Vec sum = {};
            for (int64_t slice = 0; slice < slices; ++slice) sum += Load(sums + slice * size);
            Store(kernel + ((3 * k + j) * group + in) * c + block * kLanes, sum);
          }
    });
  }
};

}  // namespace grouped
