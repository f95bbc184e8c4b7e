// What works on each channel of (N, H, W, C) arrays by itself: the sums that batch normalisation and its gradient take, and
// depthwise convolutions. XLA's threads share the work; what a result is made of does not depend on how many they are.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "share.h"
#include "vector.h"

namespace channels {

// The n-th of `parts` even parts of 0 to `whole`: where it begins.
inline int64_t Part(int64_t whole, int64_t parts, int64_t n) { return whole * n / parts; }

// body(c, integral constant of registers) over all of C channels, the last of which may be fewer than a register.
// Rows are read `kMost` registers at a time: the longer, the nearer to memory's speed.
template <int kMost = 4, typename Body>
void OverChannels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kMost * kWide <= channels; c += kMost * kWide) body(c, std::integral_constant<int, kMost>());
  for (; c + 4 * kWide <= channels; c += 4 * kWide) body(c, std::integral_constant<int, 4>());
  for (; c + kWide <= channels; c += kWide) body(c, std::integral_constant<int, 1>());
}

// Rows are summed `kFew` at a time in registers, in up to 64 parts that do not depend on the number of threads.
constexpr int64_t kFew = 32;
inline int64_t Parts(int64_t rows) { return std::min<int64_t>(64, (rows + 63) / 64); }

// sums[0] = the sum over all rows of m g, sums[1] = of m g (x - mean), where m is 1 where (x - mean) scale + bias > 0, and 0
// elsewhere; without `relu`, m is 1. g and x are (rows, channels).
inline void Sums(xla::ffi::ThreadPool pool, int64_t rows, int64_t channels, const float* g, const float* x,
                 const float* mean, const float* scale, const float* bias, bool relu, float* sums) {
  const int64_t parts = Parts(rows), whole = channels / kWide * kWide;
  std::vector<float> partial(parts * 2 * channels);
  Share(pool, parts, [&](int64_t part) {
    float* const to = partial.data() + part * 2 * channels;
    for (int64_t first = Part(rows, parts, part), end = Part(rows, parts, part + 1); first < end; first += kFew) {
      const int64_t last = std::min(first + kFew, end);
      OverChannels(channels, [&](int64_t c, auto registers) {
        constexpr int n = decltype(registers)::value;
        Vec s[n], t[n], m[n], a[n], b[n];
        for (int v = 0; v < n; ++v) {
          const int64_t at = c + v * kWide;
          s[v] = Load(to + at), t[v] = Load(to + channels + at), m[v] = Load(mean + at);
          if (relu) a[v] = Load(scale + at), b[v] = Load(bias + at);
        }
        for (int64_t row = first; row < last; ++row)
#pragma GCC unroll 4
          for (int v = 0; v < n; ++v) {
            const int64_t at = row * channels + c + v * kWide;
            const Vec apart = Load(x + at) - m[v];
            Vec value = Load(g + at);
            if (relu) value = apart * a[v] + b[v] > 0 ? value : Vec{};
            s[v] += value;
            t[v] += value * apart;
          }
        for (int v = 0; v < n; ++v) Store(to + c + v * kWide, s[v]), Store(to + channels + c + v * kWide, t[v]);
      });
      for (int64_t c = whole; c < channels; ++c)
        for (int64_t row = first; row < last; ++row) {
          const float apart = x[row * channels + c] - mean[c];
          const float value = relu && !(apart * scale[c] + bias[c] > 0) ? 0 : g[row * channels + c];
          to[c] += value, to[channels + c] += value * apart;
        }
    }
  });
  std::vector<double> total(2 * channels);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < 2 * channels; ++i) total[i] += partial[part * 2 * channels + i];
  std::copy(total.begin(), total.end(), sums);
}

// moments[0] = the mean of x (rows, channels), moments[1] = its variance, in one pass over memory. Each part sums x - shift
// and its square, where the shift is the mean of the part's first rows, so that nothing cancels where the mean is many
// deviations; the parts are then merged in double (Chan et al. 1983).
inline void Moments(xla::ffi::ThreadPool pool, int64_t rows, int64_t channels, const float* x, float* moments) {
  const int64_t parts = Parts(rows), whole = channels / kWide * kWide;
  std::vector<float> partial(parts * 3 * channels);
  Share(pool, parts, [&](int64_t part) {
    float *const shift = partial.data() + part * 3 * channels, *const sum = shift + channels, *const squares = sum + channels;
    const int64_t begin = Part(rows, parts, part), end = Part(rows, parts, part + 1);
    for (int64_t first = begin; first < end; first += kFew) {
      const int64_t last = std::min(first + kFew, end);
      OverChannels<kWide == 16 ? 8 : 4>(channels, [&](int64_t c, auto registers) {
        constexpr int n = decltype(registers)::value;
        Vec m[n] = {}, s[n] = {}, t[n] = {};
        if (first == begin) {
          for (int64_t row = first; row < last; ++row)
#pragma GCC unroll 8
            for (int v = 0; v < n; ++v) m[v] += Load(x + row * channels + c + v * kWide);
          for (int v = 0; v < n; ++v) Store(shift + c + v * kWide, m[v] / static_cast<float>(last - first));
        }
        for (int v = 0; v < n; ++v) m[v] = Load(shift + c + v * kWide);
        for (int64_t row = first; row < last; ++row)
#pragma GCC unroll 8
          for (int v = 0; v < n; ++v) {
            const Vec apart = Load(x + row * channels + c + v * kWide) - m[v];
            s[v] += apart;
            t[v] += apart * apart;
          }
        for (int v = 0; v < n; ++v) {
          const int64_t at = c + v * kWide;
          Store(sum + at, Load(sum + at) + s[v]), Store(squares + at, Load(squares + at) + t[v]);
        }
      });
      for (int64_t c = whole; c < channels; ++c) {
        for (int64_t row = first; first == begin && row < last; ++row) shift[c] += x[row * channels + c] / (last - first);
        for (int64_t row = first; row < last; ++row) {
          const float apart = x[row * channels + c] - shift[c];
          sum[c] += apart, squares[c] += apart * apart;
        }
      }
    }
  });
  std::vector<double> mean(channels), variance(channels);
  auto merge = [&](auto add) {
    for (int64_t part = 0; part < parts; ++part) {
      const float *const shift = partial.data() + part * 3 * channels, *const sum = shift + channels;
      const double count = Part(rows, parts, part + 1) - Part(rows, parts, part);
      for (int64_t c = 0; c < channels; ++c) add(c, count, shift[c], sum[c], sum[channels + c]);
    }
  };
  merge([&](int64_t c, double count, double shift, double sum, double) { mean[c] += (count * shift + sum) / rows; });
  merge([&](int64_t c, double count, double shift, double sum, double squares) {
    const double apart = shift - mean[c];
    variance[c] += (squares + apart * (2 * sum + count * apart)) / rows;
  });
  for (int64_t c = 0; c < channels; ++c) moments[c] = mean[c], moments[channels + c] = std::max(variance[c], 0.0);
}

// A depthwise convolution y = x * kernel of images (n, h, w, c), whose kernel is (3, 3, c).
struct Depthwise {
  int64_t n, h, w, c, height, width;  // height, width: of y
  int64_t stride, top, left;          // padding

  // what oneDNN is slower at: docs/performance.md
  bool fits(bool kernel_gradient) const { return kFast && c % kWide == 0 && (stride == 1 || kernel_gradient); }

  // y of x, at stride 1; `turned`: of the kernel turned round.
  void Convolve(xla::ffi::ThreadPool pool, const float* x, const float* kernel, float* y, bool turned = false) const {
    constexpr int few = 4, wide = few + 2;  // outputs at a time, and the columns that they meet
    const int64_t parts = std::min<int64_t>(n * height, 64);
    Share(pool, parts, [&](int64_t part) {
      for (int64_t row = Part(n * height, parts, part); row < Part(n * height, parts, part + 1); ++row)
        for (int64_t column = 0; column < width; column += few) {
          const int64_t first = column - left;
          const bool inside = first >= 0 && first + wide <= w;
          for (int64_t channel = 0; channel < c; channel += kWide) {
            Vec s[few] = {};
            for (int i = 0; i < 3; ++i) {
              const int64_t line = row % height + i - top;
              if (line < 0 || line >= h) continue;
              const float* const from = x + ((row / height * h + line) * w + first) * c + channel;
              Vec v[wide], k[3];
              for (int j = 0; j < 3; ++j) k[j] = Load(kernel + (turned ? 8 - 3 * i - j : 3 * i + j) * c + channel);
              if (inside) {
#pragma GCC unroll 16
                for (int m = 0; m < wide; ++m) v[m] = Load(from + m * c);
              } else {
                for (int m = 0; m < wide; ++m) v[m] = first + m >= 0 && first + m < w ? Load(from + m * c) : Vec{};
              }
#pragma GCC unroll 4
              for (int o = 0; o < few; ++o)
#pragma GCC unroll 3
                for (int j = 0; j < 3; ++j) s[o] += v[o + j] * k[j];
            }
            for (int o = 0; o < few && column + o < width; ++o) Store(y + (row * width + column + o) * c + channel, s[o]);
          }
        }
    });
  }

  void InputGradient(xla::ffi::ThreadPool pool, const float* y, const float* kernel, float* x) const {
    Depthwise{n, height, width, c, h, w, 1, 2 - top, 2 - left}.Convolve(pool, y, kernel, x, true);
  }

  void KernelGradient(xla::ffi::ThreadPool pool, const float* x, const float* y, float* kernel) const {
    const int64_t parts = std::min<int64_t>(n, 16), size = 9 * c;
    std::vector<float> partial(parts * size);
    Share(pool, parts, [&](int64_t part) {
      for (int64_t row = Part(n, parts, part) * height; row < Part(n, parts, part + 1) * height; ++row)
        OverChannels(c, [&](int64_t channel, auto registers) {
          constexpr int count = decltype(registers)::value;
          for (int i = 0; i < 3; ++i) {
            const int64_t line = row % height * stride + i - top;
            if (line < 0 || line >= h) continue;
            for (int j = 0; j < 3; ++j) {
              // the columns of y for which column * stride + j - left is within x
              const int64_t first = std::max<int64_t>(0, (left - j + stride - 1) / stride);
              const int64_t end = std::min(width, (w - 1 + left - j + stride) / stride);
              float* const to = partial.data() + part * size + (3 * i + j) * c + channel;
              const float* a = x + ((row / height * h + line) * w + first * stride + j - left) * c + channel;
              const float* b = y + (row * width + first) * c + channel;
              Vec s[count];
              for (int v = 0; v < count; ++v) s[v] = Load(to + v * kWide);
              for (int64_t column = first; column < end; ++column, a += stride * c, b += c)
#pragma GCC unroll 4
                for (int v = 0; v < count; ++v) s[v] += Load(a + v * kWide) * Load(b + v * kWide);
              for (int v = 0; v < count; ++v) Store(to + v * kWide, s[v]);
            }
          }
        });
    });
    std::copy_n(partial.data(), size, kernel);
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < size; ++i) kernel[i] += partial[part * size + i];
  }
};

}  // namespace channels
