// Convolutions of (N, H, W, C) images with few channels and features, such as LeNet's, at stride 1: a register holds one
// value of kLanes images, so that it is full whatever the number of channels.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel_for.h"
#include "vector.h"

namespace few {

constexpr int kBlock = 4;  // kBlock: features that are worked on at a time
// How many outputs, or places of a kernel, meet so many features at a time: registers hold their sums, what meets them, and one
// value more; with one feature nothing is met twice, and sums alone take three quarters of the registers.
constexpr int Met(int features) { return features == 1 ? 3 * kRegisters / 4 : (kRegisters - 1) / (features + 1); }

template <int bit, int... e>
constexpr LaneIndices Exchange(bool high, std::integer_sequence<int, e...>) {
  return high ? LaneIndices{(e & bit ? kLanes + e : e + bit)...} : LaneIndices{(e & bit ? kLanes + e - bit : e)...};
}

// rows and columns of a square of kLanes x kLanes exchanged
template <int bit = 1>
inline void Transpose(Vec* t) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
  constexpr LaneIndices low = Exchange<bit>(false, lanes), high = Exchange<bit>(true, lanes);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & bit)) {
      const Vec a = t[i], b = t[i + bit];
      t[i] = __builtin_shuffle(a, b, low), t[i + bit] = __builtin_shuffle(a, b, high);
    }
  if constexpr (2 * bit < kLanes) Transpose<2 * bit>(t);
}

// `count` values of each of `images` images (of kLanes; the others are 0), `next` floats apart, to registers, one value of all
// images after the other.
inline void Pack(const float* from, int64_t next, int64_t images, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vec t[kLanes];
    for (int n = 0; n < kLanes; ++n) t[n] = n < images ? Load(from + n * next + i) : Vec{};
    Transpose(t);
    for (int n = 0; n < kLanes; ++n) Store(to + (i + n) * kLanes, t[n]);
  }
  for (; i < count; ++i)
    for (int n = 0; n < kLanes; ++n) to[i * kLanes + n] = n < images ? from[n * next + i] : 0;
}

inline void Unpack(const float* from, int64_t next, int64_t images, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vec t[kLanes];
    for (int n = 0; n < kLanes; ++n) t[n] = Load(from + (i + n) * kLanes);
    Transpose(t);
    for (int n = 0; n < images; ++n) Store(to + n * next + i, t[n]);
  }
  for (; i < count; ++i)
    for (int n = 0; n < images; ++n) to[n * next + i] = from[i * kLanes + n];
}

// kLanes images (h, w, c), framed with zeros.
struct Images {
  int64_t h, w, c, top, left, height, width;  // height, width: with their frame
  int64_t size() const { return height * width * c * kLanes; }
  void Fill(const float* from, int64_t images, float* to) const {
    std::fill_n(to, size(), 0.f);
    for (int64_t i = 0; i < h && i + top < height; ++i)
      Pack(from + i * w * c, h * w * c, images, std::min(w, width - left) * c, to + ((i + top) * width + left) * c * kLanes);
  }
  const float* Row(const float* data, int64_t i) const { return data + i * width * c * kLanes; }
};

// sums[o][f] = the sum over i < rows and u < inner of x[i * next_row + (o * c + u)] k[(i * inner + u) * next_k + f], of
// registers x and sums and numbers k.
template <int outputs, int features>
void Place(const float* x, int64_t c, int64_t rows, int64_t next_row, int64_t inner, const float* k, int64_t next_k,
           float* sums, int64_t next_sum) {
  Vec s[outputs][features] = {};
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t u = 0; u < inner; ++u, k += next_k) {
      const float* const from = x + (i * next_row + u) * kLanes;
      Vec v[outputs];
#pragma GCC unroll 24
      for (int o = 0; o < outputs; ++o) v[o] = features > 1 ? LoadToRegister(from + o * c * kLanes) : Load(from + o * c * kLanes);
#pragma GCC unroll 8
      for (int f = 0; f < features; ++f)
#pragma GCC unroll 24
        for (int o = 0; o < outputs; ++o) s[o][f] += v[o] * k[f];
    }
#pragma GCC unroll 24
  for (int o = 0; o < outputs; ++o)
#pragma GCC unroll 8
    for (int f = 0; f < features; ++f) Store(sums + (o * next_sum + f) * kLanes, s[o][f]);
}

// sums[u][f] += the sum over o < outputs of x[o * c + u] y[o * next_y + f], all registers.
template <int taps, int features>
void Product(const float* x, int64_t c, int64_t outputs, const float* y, int64_t next_y, float* sums, int64_t next_sum) {
  Vec s[taps][features];
#pragma GCC unroll 16
  for (int u = 0; u < taps; ++u)
#pragma GCC unroll 8
    for (int f = 0; f < features; ++f) s[u][f] = Load(sums + (u * next_sum + f) * kLanes);
  for (int64_t o = 0; o < outputs; ++o, x += c * kLanes, y += next_y * kLanes) {
    Vec v[taps];
#pragma GCC unroll 16
    for (int u = 0; u < taps; ++u) v[u] = LoadToRegister(x + u * kLanes);
#pragma GCC unroll 8
    for (int f = 0; f < features; ++f) {
      const Vec b = LoadToRegister(y + f * kLanes);
#pragma GCC unroll 16
      for (int u = 0; u < taps; ++u) s[u][f] += v[u] * b;
    }
  }
#pragma GCC unroll 16
  for (int u = 0; u < taps; ++u)
#pragma GCC unroll 8
    for (int f = 0; f < features; ++f) Store(sums + (u * next_sum + f) * kLanes, s[u][f]);
}

// body(first, constant count) over 0 to `whole` in blocks of `size`, and what is left of them.
template <int size = kBlock, typename Body>
void InBlocks(int64_t whole, const Body& body, int64_t first = 0) {
  for (; first + size <= whole; first += size) body(first, std::integral_constant<int, size>());
  if constexpr (size > 1) InBlocks<size - 1>(whole, body, first);
}

// A convolution y = x * kernel of images (n, h, w, c), whose kernel is (kh, kw, c, features).
struct Shape {
  int64_t n, h, w, c, kh, kw, height, width, features;  // height, width: of y
  int64_t top, left;                                    // padding

  Images Framed() const { return {h, w, c, top, left, height + kh - 1, width + kw - 1}; }
  // whether it is faster than oneDNN: docs/performance.md
  bool fits() const {
    return kHasFma && n >= kLanes / 2 && c <= 8 && features <= 16 && std::max(Framed().size(), width * features * kLanes) <= 1 << 18;
  }

  // body(images, where they begin, how many there are) for each kLanes images.
  template <typename Body>
  void Groups(xla::ffi::ThreadPool pool, const Body& body) const {
    ParallelFor(pool, (n + kLanes - 1) / kLanes, [&](int64_t group) {
      body(group, group * kLanes, std::min<int64_t>(kLanes, n - group * kLanes));
    });
  }

  void Forward(xla::ffi::ThreadPool pool, const float* x, const float* kernel, float* y) const {
    const Images framed = Framed();
    Groups(pool, [&](int64_t, int64_t first, int64_t images) {
      thread_local std::vector<float> space;
      space.resize(std::max<size_t>(space.size(), framed.size() + width * features * kLanes));
      float* const data = space.data();
      float* const line = data + framed.size();
      framed.Fill(x + first * h * w * c, images, data);
      for (int64_t i = 0; i < height; ++i) {
        const int64_t begin = std::max<int64_t>(0, top - i), end = std::min(kh, h + top - i);  // the kernel's rows within x
        InBlocks(features, [&](int64_t f, auto count) {
          constexpr int wide = Met(count.value);
          auto place = [&](int64_t j, auto outputs) {
            Place<outputs.value, count.value>(framed.Row(data, i + begin) + j * c * kLanes, c, end - begin, framed.width * c,
                                              kw * c, kernel + begin * kw * c * features + f, features,
                                              line + (j * features + f) * kLanes, features);
          };
          const int64_t run = width < wide ? 1 : wide;
          for (int64_t j = 0; j < width; j += run)
            if (run == 1 || j + 1 == width)
              place(j, std::integral_constant<int, 1>());
            else  // the last ones may be some of those before them once more
              place(std::min(j, width - wide), std::integral_constant<int, wide>());
        });
        Unpack(line, height * width * features, images, width * features, y + (first * height + i) * width * features);
      }
    });
  }

  void InputGradient(xla::ffi::ThreadPool pool, const float* y, const float* kernel, float* x) const {
    std::vector<float> turned(kh * kw * c * features);
    for (int64_t i = 0; i < kh * kw; ++i)
      for (int64_t in = 0; in < c; ++in)
        for (int64_t out = 0; out < features; ++out)
          turned[((kh * kw - 1 - i) * features + out) * c + in] = kernel[(i * c + in) * features + out];
    Back().Forward(pool, y, turned.data(), x);
  }
  Shape Back() const { return {n, height, width, features, kh, kw, h, w, c, kh - 1 - top, kw - 1 - left}; }

  void KernelGradient(xla::ffi::ThreadPool pool, const float* x, const float* y, float* kernel) const {
    const Images framed = Framed();
    const int64_t size = kh * kw * c * features, inner = kw * c;
    std::vector<float> partial((n + kLanes - 1) / kLanes * size);
    Groups(pool, [&](int64_t group, int64_t first, int64_t images) {
      thread_local std::vector<float> space;
      space.resize(std::max<size_t>(space.size(), framed.size() + (width * features + size) * kLanes));
      float* const data = space.data();
      float* const line = data + framed.size();
      float* const sums = line + width * features * kLanes;
      framed.Fill(x + first * h * w * c, images, data);
      std::fill_n(sums, size * kLanes, 0.f);
      for (int64_t i = 0; i < height; ++i) {
        Pack(y + (first * height + i) * width * features, height * width * features, images, width * features, line);
        for (int64_t r = 0; r < kh; ++r)
          InBlocks(features, [&](int64_t f, auto count) {
            InBlocks<std::min(Met(count.value), 5)>(inner, [&](int64_t u, auto taps) {
              Product<taps.value, count.value>(framed.Row(data, i + r) + u * kLanes, c, width, line + f * kLanes, features,
                                               sums + ((r * inner + u) * features + f) * kLanes, features);
            });
          });
      }
      for (int64_t i = 0; i < size; ++i)
        for (int lane = 0; lane < kLanes; ++lane) partial[group * size + i] += sums[i * kLanes + lane];
    });
    std::copy_n(partial.data(), size, kernel);
    for (size_t i = size; i < partial.size(); ++i) kernel[i % size] += partial[i];
  }
};

}  // namespace few
