// Winograd's convolutions F(4x4, 3x3) of (N, H, W, C) images and their gradients (Winograd 1980; Lavin & Gray 2016, "Fast
// algorithms for convolutional neural networks"): 36 products for 16 outputs, where the direct sum takes 144.
//
// In float32 its error is some times that of the direct sum. The points 0, 3/4, -3/4, 3/2, -3/2 and infinity have half the
// error of the customary 0, 1, -1, 2, -2 and infinity (docs/performance.md; on the choice of points: Barabasz et al. 2020,
// "Error analysis and improving the accuracy of Winograd convolution for deep neural networks").

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "vector.h"

namespace winograd {

constexpr int kRows = kLanes == 16 ? 14 : 6;  // 2 * kRows of 32 registers, or of 16, hold sums
constexpr int kPair = 2 * kLanes, kHalf = kLanes / 2, kPoints = 36;
constexpr int64_t kRun = 64;  // products that are summed in a register, before the sum is added to others
constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

// The transforms of one line, which may be done in place; `s` is the distance between its elements.

inline void ToPoints(const Vec* d, Vec* v, int s) {  // 6 pixels of the image
  const Vec e1 = d[4 * s] - kB2 * d[2 * s], o1 = kA * (d[3 * s] - kB2 * d[s]);
  const Vec e2 = d[4 * s] - kA2 * d[2 * s], o2 = kB * (d[3 * s] - kA2 * d[s]);
  const Vec last = kA2 * kB2 * d[s] - (kA2 + kB2) * d[3 * s] + d[5 * s];
  v[0] = kA2 * kB2 * d[0] - (kA2 + kB2) * d[2 * s] + d[4 * s];
  v[s] = e1 + o1, v[2 * s] = e1 - o1, v[3 * s] = e2 + o2, v[4 * s] = e2 - o2, v[5 * s] = last;
}

inline void FromPoints(const Vec* m, Vec* y, int s) {  // to 4 outputs
  const Vec p1 = m[s] + m[2 * s], n1 = m[s] - m[2 * s], p2 = m[3 * s] + m[4 * s], n2 = m[3 * s] - m[4 * s];
  y[0] = m[0] + p1 + p2;
  y[s] = kA * n1 + kB * n2;
  y[2 * s] = kA2 * p1 + kB2 * p2;
  y[3 * s] = kA * kA2 * n1 + kB * kB2 * n2 + m[5 * s];
}

inline void OutputsToPoints(const Vec* y, Vec* z, int s) {  // FromPoints transposed
  const Vec e1 = y[0] + kA2 * y[2 * s], o1 = kA * (y[s] + kA2 * y[3 * s]);
  const Vec e2 = y[0] + kB2 * y[2 * s], o2 = kB * (y[s] + kB2 * y[3 * s]);
  const Vec last = y[3 * s];
  z[0] = y[0];
  z[s] = e1 + o1, z[2 * s] = e1 - o1, z[3 * s] = e2 + o2, z[4 * s] = e2 - o2, z[5 * s] = last;
}

constexpr float k0 = 1 / (kA2 * kB2), k1 = 1 / (2 * kA2 * (kA2 - kB2)), k2 = 1 / (2 * kB2 * (kB2 - kA2));

inline void KernelToPoints(const Vec* g, Vec* u, int s) {  // 3 places of the kernel
  const Vec e1 = k1 * (g[0] + kA2 * g[2 * s]), o1 = k1 * kA * g[s];
  const Vec e2 = k2 * (g[0] + kB2 * g[2 * s]), o2 = k2 * kB * g[s];
  const Vec last = g[2 * s];
  u[0] = k0 * g[0];
  u[s] = e1 + o1, u[2 * s] = e1 - o1, u[3 * s] = e2 + o2, u[4 * s] = e2 - o2, u[5 * s] = last;
}

inline void PointsToKernel(const Vec* u, Vec* g, int s) {  // KernelToPoints transposed
  const Vec p1 = k1 * (u[s] + u[2 * s]), n1 = k1 * (u[s] - u[2 * s]);
  const Vec p2 = k2 * (u[3 * s] + u[4 * s]), n2 = k2 * (u[3 * s] - u[4 * s]);
  g[0] = k0 * u[0] + p1 + p2;
  g[s] = kA * n1 + kB * n2;
  g[2 * s] = kA2 * p1 + kB2 * p2 + u[5 * s];
}

// A transform of squares of side `from` to squares of side `to`, both kept in rows of 6.
template <void (*line)(const Vec*, Vec*, int), int from, int to>
inline void Square(Vec* t) {
  for (int j = 0; j < from; ++j) line(t + j, t + j, 6);
  for (int i = 0; i < to; ++i) line(t + 6 * i, t + 6 * i, 1);
}

// sums[r][columns] (+)= the sum over k of a[r * row + k] * b[k][columns], of one or two registers of columns: `blocks` times
// `inner` values of k, a block of them `next_block` after the other.
template <int rows, int registers, int row, int inner>
void Product(int64_t blocks, const float* a, int64_t next_block, const float* b, float* sums, int64_t next_row,
             int64_t next_register, bool add) {
  Vec s[rows][registers] = {};
  for (int64_t block = 0; block < blocks; ++block, a += next_block)
#pragma GCC unroll 4
    for (int k = 0; k < inner; ++k, b += kPair) {
      Vec columns[registers];
#pragma GCC unroll 2
      for (int v = 0; v < registers; ++v) columns[v] = Load(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < registers; ++v) s[r][v] += a[r * row + k] * columns[v];
    }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < registers; ++v) {
      float* to = sums + r * next_row + v * next_register;
      Store(to, add ? Load(to) + s[r][v] : s[r][v]);
    }
}

// Product of a number of rows that is known when it runs, kLanes apart.
template <int registers, int... n>
auto ProductOf(int64_t rows, std::integer_sequence<int, n...>) {
  static constexpr decltype(&Product<1, registers, kLanes, kLanes>) products[] = {Product<n + 1, registers, kLanes, kLanes>...};
  return products[rows - 1];
}
constexpr std::make_integer_sequence<int, kRows> kUpToRows;

inline int64_t Whole(int64_t columns) { return (columns + kPair - 1) / kPair * kPair; }

// The convolution of `x` with 3x3 kernels, at stride 1.
struct Shape {
  int64_t n, h, w, c;               // of x
  int64_t height, width, features;  // of the result
  int64_t top, left;                // padding
  int64_t x_pixel, y_pixel;         // from one pixel to the next, of x and of the result: c and features, or those of all groups

  int64_t down() const { return (height + 3) / 4; }
  int64_t across() const { return (width + 3) / 4; }
  int64_t squares() const { return n * down() * across(); }  // of 4x4 outputs
  // whether it can be done like this, in 150 MB, and is faster than the direct sum (docs/performance.md)
  bool fits() const {
    return kHasFma && c % kLanes == 0 && features % kLanes == 0 && std::min(c, features) >= 32 && c * features <= 1 << 20 &&
           squares() >= 32;
  }

  // how many squares are worked on at a time: by each thread, or by all of them
  int64_t few(int threads) const { return std::min<int64_t>(4 * kRows, (squares() + threads - 1) / threads); }
  int64_t many() const {
    return std::min(std::max<int64_t>((int64_t{8} << 20) / (4 * kPoints * (c + Whole(features))), 64), squares());
  }
  // floats of memory to work in
  int64_t space(bool gradient, int threads) const {
    const int64_t squares = gradient ? many() : few(threads) * threads;
    return kPoints * (c * Whole(features) + squares * (c + Whole(features)) + (2 * threads + 1) * kLanes);
  }
};

// Where square `i` begins.
struct Corner {
  int64_t n, top, left;
  Corner(const Shape& s, int64_t i)
      : n(i / (s.down() * s.across())), top(i / s.across() % s.down() * 4), left(i % s.across() * 4) {}
};

// The square of size x size pixels of a batch (N, h, w, c), its pixels `pixel` floats apart, that begins at (y, x) of image n,
// at its 36 points: a point `next` floats after the other, and of each, `block` channels `next_block` after the others. Outside
// of the image is zero.
template <void (*line)(const Vec*, Vec*, int), int size, int block>
void SquareToPoints(const float* images, int64_t h, int64_t w, int64_t c, int64_t pixel, int64_t n, int64_t y, int64_t x,
                    float* to, int64_t next_block, int64_t next) {
  for (int64_t channel = 0; channel < c; channel += kLanes) {
    Vec t[kPoints];
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j) {
        const bool inside = y + i >= 0 && y + i < h && x + j >= 0 && x + j < w;
        t[6 * i + j] = inside ? Load(images + ((n * h + y + i) * w + x + j) * pixel + channel) : Vec{};
      }
    Square<line, size, 6>(t);
    float* const place = to + channel / block * next_block + channel % block;
    for (int p = 0; p < kPoints; ++p) Store(place + p * next, t[p]);
  }
}

// y = x * kernel. `turned`: the kernel (3, 3, features, c) is that of the convolution whose input gradient this is.
inline void Convolve(const Shape& s, const float* x, const float* kernel, bool turned, float* y, float* space, int threads) {
  const int64_t columns = Whole(s.features), next_u = s.c * columns + kLanes, few = s.few(threads);
  const int64_t ins = turned ? s.features : s.c, outs = turned ? s.c : s.features;
  float* const u = space;  // [36][columns / kPair][c][kPair]
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int64_t in = 0; in < ins; ++in)
      for (int64_t out = 0; out < outs; out += kLanes) {
        Vec t[kPoints];
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j)
            t[6 * i + j] = Load(kernel + ((turned ? 8 - 3 * i - j : 3 * i + j) * ins + in) * outs + out);
        Square<KernelToPoints, 3, 6>(t);
        for (int p = 0; p < kPoints; ++p) {
          float* const point = u + p * next_u;
          if (!turned) Store(point + (out / kPair * s.c + in) * kPair + out % kPair, t[p]);
          for (int lane = 0; turned && lane < kLanes; ++lane)
            point[(in / kPair * s.c + out + lane) * kPair + in % kPair] = t[p][lane];
        }
      }
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < s.squares(); first += few) {
      const int64_t count = std::min(few, s.squares() - first);
      const int64_t next_v = count * s.c + kLanes, next_m = count * columns + kLanes;
      float* const v = u + kPoints * next_u + omp_get_thread_num() * kPoints * (few * (s.c + columns) + 2 * kLanes);
      float* const m = v + kPoints * next_v;  // v: [36][c / kLanes][count][kLanes]; m: [36][columns / kLanes][count][kLanes]
      for (int64_t i = 0; i < count; ++i) {
        const Corner at(s, first + i);
        SquareToPoints<ToPoints, 6, kLanes>(x, s.h, s.w, s.c, s.x_pixel, at.n, at.top - s.top, at.left - s.left,
                                           v + i * kLanes, count * kLanes, next_v);
      }
      for (int p = 0; p < kPoints; ++p)
        for (int64_t column = 0; column < s.features; column += kPair)
          for (int64_t row = 0, parts = (count + kRows - 1) / kRows, rows; row < count; row += rows, --parts) {
            rows = (count - row + parts - 1) / parts;
            const auto product = s.features - column < kPair ? ProductOf<1>(rows, kUpToRows) : ProductOf<2>(rows, kUpToRows);
            for (int64_t c = 0; c < s.c; c += kRun)
              product((std::min(c + kRun, s.c) - c) / kLanes, v + p * next_v + c * count + row * kLanes, count * kLanes,
                      u + p * next_u + column * s.c + c * kPair, m + p * next_m + column * count + row * kLanes, kLanes,
                      count * kLanes, c > 0);
          }
      for (int64_t i = 0; i < count; ++i) {
        const Corner at(s, first + i);
        float* const corner = y + ((at.n * s.height + at.top) * s.width + at.left) * s.y_pixel;
        for (int64_t feature = 0; feature < s.features; feature += kLanes) {
          Vec t[kPoints];
          for (int p = 0; p < kPoints; ++p) t[p] = Load(m + p * next_m + feature * count + i * kLanes);
          Square<FromPoints, 6, 4>(t);
          for (int r = 0; r < 4 && at.top + r < s.height; ++r)
            for (int k = 0; k < 4 && at.left + k < s.width; ++k)
              Store(corner + (r * s.width + k) * s.y_pixel + feature, t[6 * r + k]);
        }
      }
    }
  }
}

// The gradient of the kernel (3, 3, c, features), where `y` is that of the result.
inline void KernelGradient(const Shape& s, const float* x, const float* y, float* kernel, float* space, int threads) {
  const int64_t columns = Whole(s.features), next_u = s.c * columns + kLanes, many = s.many();
  float* const u = space;  // [36][columns / kPair][c][kPair]
#pragma omp parallel num_threads(threads)
  {
    for (int64_t first = 0; first < s.squares(); first += many) {
      const int64_t count = std::min(many, s.squares() - first);
      const int64_t next_v = count * s.c + kLanes, next_z = count * columns + kLanes;
      float* const v = u + kPoints * next_u;   // [36][c / kLanes][count][kLanes]
      float* const z = v + kPoints * next_v;  // [36][columns / kPair][count][kPair]
#pragma omp for
      for (int64_t i = 0; i < count; ++i) {
        const Corner at(s, first + i);
        SquareToPoints<ToPoints, 6, kLanes>(x, s.h, s.w, s.c, s.x_pixel, at.n, at.top - s.top, at.left - s.left,
                                           v + i * kLanes, count * kLanes, next_v);
        SquareToPoints<OutputsToPoints, 4, kPair>(y, s.height, s.width, s.features, s.y_pixel, at.n, at.top, at.left,
                                                  z + i * kPair, count * kPair, next_z);
      }
#pragma omp for collapse(2) schedule(dynamic)
      for (int p = 0; p < kPoints; ++p)
        for (int64_t column = 0; column < columns; column += kPair)
          for (int64_t i = 0; i < count; i += kRun)
            for (int64_t c = 0; c < s.c; c += kHalf) {
              const auto product = s.features - column < kPair ? Product<kHalf, 1, 1, 1> : Product<kHalf, 2, 1, 1>;
              product(std::min<int64_t>(kRun, count - i), v + p * next_v + c / kLanes * count * kLanes + c % kLanes + i * kLanes,
                      kLanes, z + p * next_z + column * count + i * kPair, u + p * next_u + column * s.c + c * kPair, kPair,
                      kLanes, first + i > 0);
            }
    }
#pragma omp for
    for (int64_t c = 0; c < s.c; ++c)
      for (int64_t feature = 0; feature < s.features; feature += kLanes) {
        Vec t[kPoints];
        for (int p = 0; p < kPoints; ++p)
          t[p] = Load(u + p * next_u + (feature / kPair * s.c + c) * kPair + feature % kPair);
        Square<PointsToKernel, 6, 3>(t);
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j) Store(kernel + ((3 * i + j) * s.c + c) * s.features + feature, t[6 * i + j]);
      }
  }
}

}  // namespace winograd
