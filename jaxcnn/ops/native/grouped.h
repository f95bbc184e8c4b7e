// 3x3 convolutions of (N, H, W, C) images in groups of few channels, as ResNeXt has them: a register holds kLanes features of
// one pixel, and meets one channel after the other of their groups. XLA's threads share the work; what a result is made of does
// not depend on how many they are.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "parallel_for.h"
#include "vector.h"

namespace grouped {

constexpr int64_t kBand = 6144;  // floats of the images that are worked on at a time: the first cache holds them

// Of each place of a register, where its group of a power of two of channels begins.
inline LaneIndices Begins(int64_t group) {
  LaneIndices found;
  for (int32_t e = 0; e < kLanes; ++e) found[e] = e & -static_cast<int32_t>(group);
  return found;
}

// Channel c of a pixel: of the one group that it holds, if it is `wide`, else of each of those in a register.
template <bool wide>
inline Vec Channel(const float* pixel, int64_t c, const LaneIndices& places) {
  return wide ? pixel[c] - Vec{} : __builtin_shuffle(Load(pixel), places);
}

// Some outputs of a row, `next` floats apart: sums over 3 rows of the pixels of x, of `size` floats, and of a kernel
// [3][group][3][kLanes].
template <bool wide, int stride, int outputs>
void Sums(const float* x, int64_t row, int64_t size, int64_t group, const float* kernel, float* y, int64_t next) {
  Vec sums[outputs] = {};
  const LaneIndices begins = Begins(group);
  for (int i = 0; i < 3; ++i, x += row)
    for (int64_t c = 0; c < group; ++c, kernel += 3 * kLanes) {
      const Vec k[3] = {Load(kernel), Load(kernel + kLanes), Load(kernel + 2 * kLanes)};
      const LaneIndices places = begins + static_cast<int32_t>(c);
#pragma GCC unroll 24
      for (int m = 0; m < (outputs - 1) * stride + 3; ++m) {
        const Vec v = Channel<wide>(x + m * size, c, places);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j)
          if (m >= j && (m - j) % stride == 0 && (m - j) / stride < outputs) sums[(m - j) / stride] += v * k[j];
      }
    }
#pragma GCC unroll 8
  for (int o = 0; o < outputs; ++o) Store(y + o * next, sums[o]);
}

// kernel[kSome][3][kLanes] += the sums over rows of x and y of products of channels c to c + kSome with y[columns][kLanes], which
// has zeros before and after.
constexpr int kSome = 4;
template <bool wide, int stride>
void Products(const float* x, int64_t next_x, int64_t size, int64_t group, int64_t c, const float* y, int64_t next_y,
              int64_t rows, int64_t columns, float* kernel) {
  Vec sums[kSome][3] = {};
  LaneIndices places[kSome];
  for (int i = 0; i < kSome; ++i) places[i] = Begins(group) + static_cast<int32_t>(c + i);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t q = 0; q < columns; ++q) {
      Vec pixels[2 / stride + 1];
#pragma GCC unroll 3
      for (int j = 0; j <= 2 / stride; ++j) pixels[j] = LoadToRegister(y + r * next_y + (q - j) * kLanes);
#pragma GCC unroll 2
      for (int u = 0; u < stride; ++u)
#pragma GCC unroll 8
        for (int i = 0; i < kSome; ++i) {
          const Vec v = Channel<wide>(x + r * next_x + (q * stride + u) * size, c + i, places[i]);
#pragma GCC unroll 3
          for (int j = u; j < 3; j += stride) sums[i][j] += v * pixels[(j - u) / stride];
        }
    }
#pragma GCC unroll 8
  for (int i = 0; i < kSome; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j, kernel += kLanes) Store(kernel, Load(kernel) + sums[i][j]);
}

// A convolution y = x * kernel of images (n, h, w, c) in groups of `group` channels and as many features, whose kernel is
// (3, 3, group, c).
struct Shape {
  int64_t n, h, w, c, height, width, group;  // height, width: of y
  int64_t stride, top, left;                 // padding

  bool wide() const { return group >= kLanes; }
  int64_t size() const { return std::max<int64_t>(group, kLanes); }  // channels that are worked on at a time
  int64_t columns() const { return width + 2 / stride; }            // of y, and those beside them that the sums need
  int64_t line() const { return columns() * stride * size(); }
  int64_t rows() const { return std::clamp<int64_t>((kBand / line() - 3) / stride + 1, 1, height); }  // of y, at a time
  int64_t band() const { return ((rows() - 1) * stride + 3) * line(); }
  // whether it is, on the whole, faster than oneDNN and Winograd's form: docs/performance.md
  bool fits(bool input_gradient) const {
    return kHasFma && group >= 4 && group <= 32 && c % size() == 0 && size() % group == 0 && size() % kLanes == 0 &&
           (stride == 1 || (stride == 2 && !input_gradient)) && band() <= 1 << 18;
  }

  // The rows of x that `count` rows of y from `row` of image i on meet, of channels from `first` on, with zeros around them.
  void Fill(const float* x, int64_t i, int64_t row, int64_t count, int64_t first, float* to) const {
    const int64_t end = std::min(w, columns() * stride - left);
    for (int64_t r = row * stride - top, last = r + (count - 1) * stride + 3; r < last; ++r, to += line()) {
      if (r < 0 || r >= h) {
        std::fill_n(to, line(), 0.f);
        continue;
      }
      std::fill_n(to, left * size(), 0.f);
      std::fill_n(to + (end + left) * size(), line() - (end + left) * size(), 0.f);
      Copy(x + (i * h + r) * w * c + first, c, end, size(), to + left * size(), size());
    }
  }
  static void Copy(const float* from, int64_t next, int64_t count, int64_t size, float* to, int64_t next_to) {
    for (; count > 0; --count, from += next, to += next_to)
      for (int64_t e = 0; e < size; e += kLanes) Store(to + e, Load(from + e));
  }

  // body of two constants: wide, stride
  template <typename Body>
  void Static(const Body& body) const {
    using Yes = std::true_type;
    using No = std::false_type;
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    if (wide())
      stride == 1 ? body(Yes(), One()) : body(Yes(), Two());
    else
      stride == 1 ? body(No(), One()) : body(No(), Two());
  }

  // y of x. `turned`: of the convolution whose input gradient this is, with its kernel.
  void Forward(xla::ffi::ThreadPool pool, const float* x, const float* kernel, float* y, bool turned = false) const {
    std::vector<float> packed(9 * group * c);  // [c / kLanes][3][group][3][kLanes]
    ParallelFor(pool, c / kLanes, [&](int64_t block) {
      float* to = packed.data() + block * 9 * group * kLanes;
      for (int i = 0; i < 3; ++i)
        for (int64_t in = 0; in < group; ++in)
          for (int j = 0; j < 3; ++j, to += kLanes)
            for (int e = 0; e < kLanes; ++e) {
              const int64_t out = block * kLanes + e;
              to[e] = turned ? kernel[((8 - 3 * i - j) * group + out % group) * c + out / group * group + in]
                             : kernel[((3 * i + j) * group + in) * c + out];
            }
    });
    const int64_t bands = (height + rows() - 1) / rows();
    Static([&](auto wide, auto stride) {
      const int64_t run = width < 4 ? 1 : width < 8 ? 4 : 8;  // outputs at a time
      const auto sums = run == 1   ? Sums<wide.value, stride.value, 1>
                        : run == 4 ? Sums<wide.value, stride.value, 4>
                                   : Sums<wide.value, stride.value, 8>;
      ParallelFor(pool, n * bands, [&](int64_t item) {
        thread_local std::vector<float> space;
        space.resize(std::max<size_t>(space.size(), band()));
        const int64_t i = item / bands, row = item % bands * rows(), count = std::min(rows(), height - row);
        for (int64_t first = 0; first < c; first += size()) {
          Fill(x, i, row, count, first, space.data());
          for (int64_t f = first; f < first + size(); f += kLanes)
            for (int64_t r = 0; r < count; ++r)
              for (int64_t begin = 0; begin < width; begin += run) {
                const int64_t o = std::min(begin, width - run);  // the last ones may be some of those before them once more
                sums(space.data() + r * stride.value * line() + o * stride.value * size(), line(), size(), group,
                     packed.data() + f * 9 * group, y + ((i * height + row + r) * width + o) * c + f, c);
              }
        }
      });
    });
  }

  void InputGradient(xla::ffi::ThreadPool pool, const float* y, const float* kernel, float* x) const {
    Shape{n, height, width, c, h, w, group, 1, 2 - top, 2 - left}.Forward(pool, y, kernel, x, true);
  }

  void KernelGradient(xla::ffi::ThreadPool pool, const float* x, const float* y, float* kernel) const {
    const int64_t parts = std::min<int64_t>(n, 16), whole = 9 * group * c, next_y = (columns() + 2 / stride) * kLanes;
    std::vector<float> partial(parts * whole);  // of each part [c / kLanes][3][group][3][kLanes]
    Static([&](auto wide, auto stride) {
      ParallelFor(pool, parts, [&](int64_t part) {
        thread_local std::vector<float> space;
        space.resize(std::max<size_t>(space.size(), band() + rows() * next_y));
        float* const lines = space.data() + band();
        std::fill_n(lines, rows() * next_y, 0.f);
        for (int64_t i = SliceBegin(n, parts, part); i < SliceBegin(n, parts, part + 1); ++i)
          for (int64_t row = 0, count; row < height; row += count) {
            count = std::min(rows(), height - row);
            for (int64_t first = 0; first < c; first += size()) {
              Fill(x, i, row, count, first, space.data());
              for (int64_t f = first; f < first + size(); f += kLanes) {
                for (int64_t r = 0; r < count; ++r)
                  Copy(y + ((i * height + row + r) * width) * c + f, c, width, kLanes,
                       lines + r * next_y + 2 / stride.value * kLanes, kLanes);
                float* to = partial.data() + part * whole + f * 9 * group;
                for (int k = 0; k < 3; ++k)
                  for (int64_t in = 0; in < group; in += kSome, to += kSome * 3 * kLanes)
                    Products<wide.value, stride.value>(space.data() + k * line(), stride.value * line(), size(), group, in,
                                                       lines + 2 / stride.value * kLanes, next_y, count, columns(), to);
              }
            }
          }
      });
    });
    ParallelFor(pool, c / kLanes, [&](int64_t block) {
      const float* from = partial.data() + block * 9 * group * kLanes;
      for (int k = 0; k < 3; ++k)
        for (int64_t in = 0; in < group; ++in)
          for (int j = 0; j < 3; ++j, from += kLanes) {
            Vec sum = {};
            for (int64_t part = 0; part < parts; ++part) sum += Load(from + part * whole);
            Store(kernel + ((3 * k + j) * group + in) * c + block * kLanes, sum);
          }
    });
  }
};

}  // namespace grouped
