// Winograd convolutions F(4x4, 3x3) of (N, H, W, C) images and their gradients (Winograd 1980; Lavin & Gray 2016, "Fast
// algorithms for convolutional neural networks"). A tile of 4x4 outputs takes 36 multiplications instead of the 144 of the
// direct sum.
//
// In float32 the error is a few times that of the direct sum. The interpolation points 0, 3/4, -3/4, 3/2, -3/2 and infinity
// have half the error of the customary 0, 1, -1, 2, -2 and infinity (docs/performance-log.md). Barabasz et al. 2020, "Error
// analysis and improving the accuracy of Winograd convolution for deep neural networks", discuss the choice of points.
//
// Images and kernels are floats or, as the type T, bfloat16; all arithmetic is in float.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "vector.h"

namespace winograd {

constexpr int kPoints = 36;                     // 6x6 values of a transformed tile
constexpr int kMaxRows = kLanes == 16 ? 14 : 6;  // rows of a product that are computed together, in 2 * kMaxRows registers
constexpr int kPanel = 2 * kLanes;              // columns of a matrix product that are computed together
constexpr int kHalf = kLanes / 2;
constexpr int64_t kMaxSum = 64;  // number of products that are summed in a register before the sum is added to memory
constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;  // the interpolation points

// One-dimensional transforms, which may be computed in place; `s` is the stride of the elements. In the notation of Lavin &
// Gray, y = A^T [(G g) (B^T d)] for 4 outputs y, 3 kernel values g and 6 pixels d, where the product in brackets is
// elementwise.

inline void InputTransform(const Vec* d, Vec* v, int s) {  // v = B^T d
  const Vec e1 = d[4 * s] - kB2 * d[2 * s], o1 = kA * (d[3 * s] - kB2 * d[s]);
  const Vec e2 = d[4 * s] - kA2 * d[2 * s], o2 = kB * (d[3 * s] - kA2 * d[s]);
  const Vec last = kA2 * kB2 * d[s] - (kA2 + kB2) * d[3 * s] + d[5 * s];
  v[0] = kA2 * kB2 * d[0] - (kA2 + kB2) * d[2 * s] + d[4 * s];
  v[s] = e1 + o1, v[2 * s] = e1 - o1, v[3 * s] = e2 + o2, v[4 * s] = e2 - o2, v[5 * s] = last;
}

inline void OutputTransform(const Vec* m, Vec* y, int s) {  // y = A^T m
  const Vec p1 = m[s] + m[2 * s], n1 = m[s] - m[2 * s], p2 = m[3 * s] + m[4 * s], n2 = m[3 * s] - m[4 * s];
  y[0] = m[0] + p1 + p2;
  y[s] = kA * n1 + kB * n2;
  y[2 * s] = kA2 * p1 + kB2 * p2;
  y[3 * s] = kA * kA2 * n1 + kB * kB2 * n2 + m[5 * s];
}

inline void OutputGradientTransform(const Vec* y, Vec* z, int s) {  // z = A y
  const Vec e1 = y[0] + kA2 * y[2 * s], o1 = kA * (y[s] + kA2 * y[3 * s]);
  const Vec e2 = y[0] + kB2 * y[2 * s], o2 = kB * (y[s] + kB2 * y[3 * s]);
  const Vec last = y[3 * s];
  z[0] = y[0];
  z[s] = e1 + o1, z[2 * s] = e1 - o1, z[3 * s] = e2 + o2, z[4 * s] = e2 - o2, z[5 * s] = last;
}

constexpr float kG0 = 1 / (kA2 * kB2), kG1 = 1 / (2 * kA2 * (kA2 - kB2)), kG2 = 1 / (2 * kB2 * (kB2 - kA2));

inline void KernelTransform(const Vec* g, Vec* u, int s) {  // u = G g
  const Vec e1 = kG1 * (g[0] + kA2 * g[2 * s]), o1 = kG1 * kA * g[s];
  const Vec e2 = kG2 * (g[0] + kB2 * g[2 * s]), o2 = kG2 * kB * g[s];
  const Vec last = g[2 * s];
  u[0] = kG0 * g[0];
  u[s] = e1 + o1, u[2 * s] = e1 - o1, u[3 * s] = e2 + o2, u[4 * s] = e2 - o2, u[5 * s] = last;
}

inline void KernelGradientTransform(const Vec* u, Vec* g, int s) {  // g = G^T u
  const Vec p1 = kG1 * (u[s] + u[2 * s]), n1 = kG1 * (u[s] - u[2 * s]);
  const Vec p2 = kG2 * (u[3 * s] + u[4 * s]), n2 = kG2 * (u[3 * s] - u[4 * s]);
  g[0] = kG0 * u[0] + p1 + p2;
  g[s] = kA * n1 + kB * n2;
  g[2 * s] = kA2 * p1 + kB2 * p2 + u[5 * s];
}

// Transforms a tile of side `from` to a tile of side `to` in place. The rows of both are 6 elements apart.
template <void (*transform)(const Vec*, Vec*, int), int from, int to>
inline void Transform2D(Vec* t) {
  for (int j = 0; j < from; ++j) transform(t + j, t + j, 6);
  for (int i = 0; i < to; ++i) transform(t + 6 * i, t + 6 * i, 1);
}

// A matrix (rows, columns) for each of the 36 points, in panels of `width` columns: [36][columns / width][rows][width]. Each
// matrix is followed by kLanes floats of padding, so that the points do not compete for the same sets of the cache.
template <int width>
struct PointMatrices {
  float* data;
  int64_t rows, columns;

  int64_t point_stride() const { return rows * columns + kLanes; }
  int64_t panel_stride() const { return rows * width; }
  int64_t size() const { return kPoints * point_stride(); }
  float* At(int point, int64_t row, int64_t column) const {
    return data + point * point_stride() + column / width * panel_stride() + row * width + column % width;
  }
};

// Computes sums[r][column], the sum over k of a[r * a_row + k] b[k][column], for one or two vectors of columns. With
// `accumulate`, the result is added to sums. k runs over `blocks` blocks of `block_size` values; the blocks of a are
// `a_block_stride` floats apart.
template <int rows, int vectors, int a_row, int block_size>
void ProductMicrokernel(int64_t blocks, const float* a, int64_t a_block_stride, const float* b, float* sums,
                        int64_t row_stride, int64_t vector_stride, bool accumulate) {
  Vec s[rows][vectors] = {};
  for (int64_t block = 0; block < blocks; ++block, a += a_block_stride)
#pragma GCC unroll 4
    for (int k = 0; k < block_size; ++k, b += kPanel) {
      Vec columns[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) columns[v] = Load(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) s[r][v] += a[r * a_row + k] * columns[v];
    }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      float* sum = sums + r * row_stride + v * vector_stride;
      Store(sum, accumulate ? Load(sum) + s[r][v] : s[r][v]);
    }
}

// Returns the microkernel for a number of rows that is known only at run time. The rows of `a` are kLanes floats apart.
template <int vectors, int... n>
auto ProductOfRows(int64_t rows, std::integer_sequence<int, n...>) {
  static constexpr decltype(&ProductMicrokernel<1, vectors, kLanes, kLanes>) microkernels[] = {
      ProductMicrokernel<n + 1, vectors, kLanes, kLanes>...};
  return microkernels[rows - 1];
}
constexpr std::make_integer_sequence<int, kMaxRows> kRowCounts;

inline int64_t RoundUpToPanel(int64_t columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

// A 3x3 convolution of images x (n, h, w, c) at stride 1.
struct Convolution {
  int64_t n, h, w, c, out_h, out_w, features;
  int64_t pad_top, pad_left;
  int64_t x_pixel_stride, y_pixel_stride;  // c and features, or their sums over all groups

  int64_t tile_rows() const { return (out_h + 3) / 4; }
  int64_t tile_columns() const { return (out_w + 3) / 4; }
  int64_t tiles() const { return n * tile_rows() * tile_columns(); }
  int64_t columns() const { return RoundUpToPanel(features); }
  // Returns whether the algorithm supports the convolution, needs at most 150 MB of memory, and is faster than the direct
  // sum (docs/performance-log.md).
  bool IsFaster() const {
    return kHasFma && c % kLanes == 0 && features % kLanes == 0 && std::min(c, features) >= 32 && c * features <= 1 << 20 &&
           tiles() >= 32;
  }

  // Returns whether it is also faster than the direct sum of bfloat16 numbers, which takes half the time of that of floats
  // with AVX-512, and an eighth with AMX (docs/performance-log.md).
  bool IsFasterInBFloat16(bool kernel_gradient) const {
    const bool fills_tiles = 5 * n * out_h * out_w >= 4 * 16 * tiles();
    return IsFaster() && !kHasAmx && (kernel_gradient || (tiles() >= 256 && fills_tiles));
  }

  // Returns the number of tiles that a thread transforms, multiplies and transforms back at a time in the forward pass.
  int64_t forward_block(int threads) const { return std::min<int64_t>(4 * kMaxRows, (tiles() + threads - 1) / threads); }
  // Returns the number of tiles that all threads together transform and multiply at a time for the gradient of the kernel.
  int64_t gradient_block() const {
    return std::min(std::max<int64_t>((int64_t{8} << 20) / (4 * kPoints * (c + columns())), 64), tiles());
  }
  // Returns the size of the workspace in floats.
  int64_t workspace(bool kernel_gradient, int threads) const {
    const int64_t block = kernel_gradient ? gradient_block() : forward_block(threads) * threads;
    return kPoints * (c * columns() + block * (c + columns()) + (2 * threads + 1) * kLanes);
  }
};

// The image of tile i, and the first row and column of its outputs.
struct Tile {
  int64_t n, y, x;
  Tile(const Convolution& conv, int64_t i)
      : n(i / (conv.tile_rows() * conv.tile_columns())),
        y(i / conv.tile_columns() % conv.tile_rows() * 4),
        x(i % conv.tile_columns() * 4) {}
};

// Transforms all channels of the tile of size x size pixels that begins at (y, x) of image n, and stores them in row `row`
// of the matrices. Pixels outside the image are zero.
template <void (*transform)(const Vec*, Vec*, int), int size, int width, typename T>
void TransformTile(Images<const T> images, int64_t channels, int64_t n, int64_t y, int64_t x,
                   PointMatrices<width> matrices, int64_t row) {
  for (int64_t channel = 0; channel < channels; channel += kLanes) {
    Vec t[kPoints];
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j) {
        const bool inside = y + i >= 0 && y + i < images.height && x + j >= 0 && x + j < images.width;
        t[6 * i + j] = inside ? Load(images.At(n, y + i, x + j, channel)) : Vec{};
      }
    Transform2D<transform, size, 6>(t);
    float* const first_point = matrices.At(0, row, channel);
    for (int p = 0; p < kPoints; ++p) Store(first_point + p * matrices.point_stride(), t[p]);
  }
}

// Computes y = x * kernel. With `flip`, it computes the input gradient of another convolution, whose kernel
// (3, 3, features, c) is given.
template <typename T>
void Forward(const Convolution& conv, const T* x, const T* kernel, bool flip, T* y, float* workspace, int threads) {
  const Images<const T> inputs{x, conv.h, conv.w, conv.x_pixel_stride};
  const Images<T> outputs{y, conv.out_h, conv.out_w, conv.y_pixel_stride};
  const int64_t block = conv.forward_block(threads);
  const int64_t ins = flip ? conv.features : conv.c, outs = flip ? conv.c : conv.features;
  const PointMatrices<kPanel> u{workspace, conv.c, conv.columns()};  // the transformed kernel
#pragma omp parallel num_threads(threads) firstprivate(inputs, outputs, u)
  {
#pragma omp for
    for (int64_t in = 0; in < ins; ++in)
      for (int64_t out = 0; out < outs; out += kLanes) {
        Vec t[kPoints];
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j)
            t[6 * i + j] = Load(kernel + ((flip ? 8 - 3 * i - j : 3 * i + j) * ins + in) * outs + out);
        Transform2D<KernelTransform, 3, 6>(t);
        float* const first_point = flip ? u.At(0, out, in) : u.At(0, in, out);
        for (int p = 0; p < kPoints; ++p) {
          float* const point = first_point + p * u.point_stride();
          if (!flip) Store(point, t[p]);
          for (int lane = 0; flip && lane < kLanes; ++lane) point[lane * kPanel] = t[p][lane];
        }
      }
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < conv.tiles(); first += block) {
      const int64_t count = std::min(block, conv.tiles() - first);
      const int64_t thread_size = kPoints * (block * (conv.c + conv.columns()) + 2 * kLanes);
      float* const thread_workspace = workspace + u.size() + omp_get_thread_num() * thread_size;
      const PointMatrices<kLanes> v{thread_workspace, count, conv.c};                    // transformed inputs
      const PointMatrices<kLanes> m{thread_workspace + v.size(), count, conv.columns()};  // transformed outputs
      for (int64_t i = 0; i < count; ++i) {
        const Tile tile(conv, first + i);
        TransformTile<InputTransform, 6>(inputs, conv.c, tile.n, tile.y - conv.pad_top, tile.x - conv.pad_left, v, i);
      }
      for (int p = 0; p < kPoints; ++p)
        for (int64_t column = 0; column < conv.features; column += kPanel) {
          const float* const u_panel = u.At(p, 0, column);
          for (int64_t row = 0, parts = (count + kMaxRows - 1) / kMaxRows, rows; row < count; row += rows, --parts) {
            rows = (count - row + parts - 1) / parts;  // parts of about equal size
            const auto product = conv.features - column < kPanel ? ProductOfRows<1>(rows, kRowCounts)
                                                                 : ProductOfRows<2>(rows, kRowCounts);
            for (int64_t c = 0; c < conv.c; c += kMaxSum)
              product((std::min(c + kMaxSum, conv.c) - c) / kLanes, v.At(p, row, c), v.panel_stride(), u_panel + c * kPanel,
                      m.At(p, row, column), kLanes, m.panel_stride(), c > 0);
          }
        }
      for (int64_t i = 0; i < count; ++i) {
        const Tile tile(conv, first + i);
        for (int64_t feature = 0; feature < conv.features; feature += kLanes) {
          const float* const first_point = m.At(0, i, feature);
          T* const corner = outputs.At(tile.n, tile.y, tile.x, feature);
          Vec t[kPoints];
          for (int p = 0; p < kPoints; ++p) t[p] = Load(first_point + p * m.point_stride());
          Transform2D<OutputTransform, 6, 4>(t);
          for (int r = 0; r < 4 && tile.y + r < conv.out_h; ++r)
            for (int k = 0; k < 4 && tile.x + k < conv.out_w; ++k)
              Store(corner + (r * conv.out_w + k) * conv.y_pixel_stride, t[6 * r + k]);
        }
      }
    }
  }
}

// Computes the gradient of the kernel (3, 3, c, features) from x and the gradient y of the outputs.
template <typename T>
void KernelGradient(const Convolution& conv, const T* x, const T* y, T* kernel, float* workspace, int threads) {
  const Images<const T> inputs{x, conv.h, conv.w, conv.x_pixel_stride};
  const Images<const T> outputs{y, conv.out_h, conv.out_w, conv.y_pixel_stride};
  const int64_t block = conv.gradient_block();
  const PointMatrices<kPanel> u{workspace, conv.c, conv.columns()};  // the transformed gradient
#pragma omp parallel num_threads(threads) firstprivate(inputs, outputs, u)
  {
    for (int64_t first = 0; first < conv.tiles(); first += block) {
      const int64_t count = std::min(block, conv.tiles() - first);
      const PointMatrices<kLanes> v{workspace + u.size(), count, conv.c};                    // transformed inputs
      const PointMatrices<kPanel> z{workspace + u.size() + v.size(), count, conv.columns()};  // transformed output gradients
#pragma omp for
      for (int64_t i = 0; i < count; ++i) {
        const Tile tile(conv, first + i);
        TransformTile<InputTransform, 6>(inputs, conv.c, tile.n, tile.y - conv.pad_top, tile.x - conv.pad_left, v, i);
        TransformTile<OutputGradientTransform, 4>(outputs, conv.features, tile.n, tile.y, tile.x, z, i);
      }
#pragma omp for collapse(2) schedule(dynamic)
      for (int p = 0; p < kPoints; ++p)
        for (int64_t column = 0; column < conv.columns(); column += kPanel) {
          const auto product =
              conv.features - column < kPanel ? ProductMicrokernel<kHalf, 1, 1, 1> : ProductMicrokernel<kHalf, 2, 1, 1>;
          float* const u_panel = u.At(p, 0, column);
          for (int64_t i = 0; i < count; i += kMaxSum) {
            const float* const z_panel = z.At(p, i, column);
            for (int64_t c = 0; c < conv.c; c += kHalf)
              product(std::min<int64_t>(kMaxSum, count - i), v.At(p, i, c), kLanes, z_panel, u_panel + c * kPanel, kPanel,
                      kLanes, first + i > 0);
          }
        }
    }
#pragma omp for
    for (int64_t c = 0; c < conv.c; ++c)
      for (int64_t feature = 0; feature < conv.features; feature += kLanes) {
        const float* const first_point = u.At(0, c, feature);
        Vec t[kPoints];
        for (int p = 0; p < kPoints; ++p) t[p] = Load(first_point + p * u.point_stride());
        Transform2D<KernelGradientTransform, 6, 3>(t);
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j) Store(kernel + ((3 * i + j) * conv.c + c) * conv.features + feature, t[6 * i + j]);
      }
  }
}

}  // namespace winograd
