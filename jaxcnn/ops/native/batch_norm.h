// Reductions of (rows, channels) arrays over rows, which batch normalisation and its gradient need. The division of the rows
// into slices does not depend on the number of threads, so the result does not depend on it either.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "channel_blocks.h"
#include "parallel_for.h"
#include "vector.h"

namespace batch_norm {

constexpr int64_t kRowsPerBlock = 32;  // rows that are summed in registers before the sums are stored
inline int64_t NumSlices(int64_t rows) { return std::min<int64_t>(64, (rows + 63) / 64); }

// Computes two sums over rows for each channel: sums[0] is the sum of m g, and sums[1] is the sum of m g (x - mean), where g
// and x have the shape (rows, channels). With `relu`, the mask m is 1 where (x - mean) scale + bias > 0 and 0 elsewhere;
// without it, m is 1 everywhere.
template <typename T>
void GradientSums(xla::ffi::ThreadPool pool, int64_t rows, int64_t channels, const T* g, const T* x,
                  const float* mean, const float* scale, const float* bias, bool relu, float* sums) {
  const int64_t slices = NumSlices(rows), vectorised = channels / kLanes * kLanes;
  std::vector<float> slice_sums(slices * 2 * channels);
  ParallelFor(pool, slices, [&](int64_t slice) {
    float* const sum = slice_sums.data() + slice * 2 * channels;  // followed by the sum of m g (x - mean)
    const int64_t end = SliceBegin(rows, slices, slice + 1);
    for (int64_t first = SliceBegin(rows, slices, slice); first < end; first += kRowsPerBlock) {
      const int64_t last = std::min(first + kRowsPerBlock, end);
      ForEachChannelBlock(channels, [&](int64_t c, auto vectors) {
        constexpr int n = decltype(vectors)::value;
        Vec s[n], t[n], m[n], a[n], b[n];
        for (int v = 0; v < n; ++v) {
          const int64_t channel = c + v * kLanes;
          s[v] = Load(sum + channel), t[v] = Load(sum + channels + channel), m[v] = Load(mean + channel);
          if (relu) a[v] = Load(scale + channel), b[v] = Load(bias + channel);
        }
        for (int64_t row = first; row < last; ++row)
#pragma GCC unroll 4
          for (int v = 0; v < n; ++v) {
            const int64_t i = row * channels + c + v * kLanes;
            const Vec deviation = Load(x + i) - m[v];
            Vec value = Load(g + i);
            if (relu) value = deviation * a[v] + b[v] > 0 ? value : Vec{};
            s[v] += value;
            t[v] += value * deviation;
          }
        for (int v = 0; v < n; ++v) Store(sum + c + v * kLanes, s[v]), Store(sum + channels + c + v * kLanes, t[v]);
      });
      for (int64_t c = vectorised; c < channels; ++c)
        for (int64_t row = first; row < last; ++row) {
          const float deviation = x[row * channels + c] - mean[c];
          const float value = relu && !(deviation * scale[c] + bias[c] > 0) ? 0.0f : static_cast<float>(g[row * channels + c]);
          sum[c] += value, sum[channels + c] += value * deviation;
        }
    }
  });
  std::vector<double> total(2 * channels);
  for (int64_t slice = 0; slice < slices; ++slice)
    for (int64_t i = 0; i < 2 * channels; ++i) total[i] += slice_sums[slice * 2 * channels + i];
  std::copy(total.begin(), total.end(), sums);
}

// Computes the mean, moments[0], and the variance, moments[1], of each channel of x (rows, channels), reading x once. Each
// slice sums x - shift and its square. The shift is the mean of the first rows of the slice, which avoids cancellation where
// the mean is many standard deviations from 0. The slices are then merged in double precision (Chan et al. 1983).
template <typename T>
void Moments(xla::ffi::ThreadPool pool, int64_t rows, int64_t channels, const T* x, float* moments) {
  const int64_t slices = NumSlices(rows), vectorised = channels / kLanes * kLanes;
  std::vector<float> slice_sums(slices * 3 * channels);
  ParallelFor(pool, slices, [&](int64_t slice) {
    float* const shift = slice_sums.data() + slice * 3 * channels;
    float *const sum = shift + channels, *const squares = sum + channels;
    const int64_t begin = SliceBegin(rows, slices, slice), end = SliceBegin(rows, slices, slice + 1);
    for (int64_t first = begin; first < end; first += kRowsPerBlock) {
      const int64_t last = std::min(first + kRowsPerBlock, end);
      ForEachChannelBlock<kLanes == 16 ? 8 : 4>(channels, [&](int64_t c, auto vectors) {
        constexpr int n = decltype(vectors)::value;
        Vec m[n] = {}, s[n] = {}, t[n] = {};
        if (first == begin) {
          for (int64_t row = first; row < last; ++row)
#pragma GCC unroll 8
            for (int v = 0; v < n; ++v) m[v] += Load(x + row * channels + c + v * kLanes);
          for (int v = 0; v < n; ++v) Store(shift + c + v * kLanes, m[v] / static_cast<float>(last - first));
        }
        for (int v = 0; v < n; ++v) m[v] = Load(shift + c + v * kLanes);
        for (int64_t row = first; row < last; ++row)
#pragma GCC unroll 8
          for (int v = 0; v < n; ++v) {
            const Vec deviation = Load(x + row * channels + c + v * kLanes) - m[v];
            s[v] += deviation;
            t[v] += deviation * deviation;
          }
        for (int v = 0; v < n; ++v) {
          const int64_t channel = c + v * kLanes;
          Store(sum + channel, Load(sum + channel) + s[v]);
          Store(squares + channel, Load(squares + channel) + t[v]);
        }
      });
      for (int64_t c = vectorised; c < channels; ++c) {
        for (int64_t row = first; first == begin && row < last; ++row) shift[c] += x[row * channels + c] / (last - first);
        for (int64_t row = first; row < last; ++row) {
          const float deviation = x[row * channels + c] - shift[c];
          sum[c] += deviation, squares[c] += deviation * deviation;
        }
      }
    }
  });
  std::vector<double> mean(channels), variance(channels);
  auto for_each_slice = [&](auto merge) {
    for (int64_t slice = 0; slice < slices; ++slice) {
      const float *const shift = slice_sums.data() + slice * 3 * channels, *const sum = shift + channels;
      const double count = SliceBegin(rows, slices, slice + 1) - SliceBegin(rows, slices, slice);
      for (int64_t c = 0; c < channels; ++c) merge(c, count, shift[c], sum[c], sum[channels + c]);
    }
  };
  for_each_slice([&](int64_t c, double count, double shift, double sum, double) {
    mean[c] += (count * shift + sum) / rows;
  });
  for_each_slice([&](int64_t c, double count, double shift, double sum, double squares) {
    const double difference = shift - mean[c];
    variance[c] += (squares + difference * (2 * sum + count * difference)) / rows;
  });
  for (int64_t c = 0; c < channels; ++c) moments[c] = mean[c], moments[channels + c] = std::max(variance[c], 0.0);
}

}  // namespace batch_norm
