// SIMD vectors of floats, as wide as the registers of the processor.

#pragma once

#include <cstdint>

#ifdef __AVX512F__
constexpr int kLanes = 16;  // floats in a vector
constexpr int kRegisters = 32;
#else
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#endif
// Without these instructions, oneDNN is faster than all kernels of this library.
#if defined(__AVX2__) && defined(__FMA__)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

#ifdef __AMX_BF16__
constexpr bool kHasAmx = true;
#else
constexpr bool kHasAmx = false;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t LaneIndices __attribute__((vector_size(4 * kLanes)));  // the second operand of a shuffle

inline Vec Load(const float* p) { return *reinterpret_cast<const Vec*>(p); }

// Loads a vector into a register. Without this, the compiler would read a value from memory each time that it is used.
inline Vec LoadToRegister(const float* p) {
  Vec v = Load(p);
  asm("" : "+v"(v));
  return v;
}

inline void Store(float* p, const Vec& v) { *reinterpret_cast<Vec*>(p) = v; }

// A bfloat16 number: the upper half of a float. Kernels compute in float and round what they store to the nearest.
struct BFloat16 {
  uint16_t bits;

  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &wide, sizeof(value));
    return value;
  }
};

typedef uint32_t WideBits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfBits __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

inline Vec Load(const BFloat16* p) {
  return reinterpret_cast<Vec>(__builtin_convertvector(*reinterpret_cast<const HalfBits*>(p), WideBits) << 16);
}

inline void Store(BFloat16* p, const Vec& v) {
  const WideBits bits = reinterpret_cast<WideBits>(v);
  const WideBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // ties to even
  const WideBits quiet_nan = (bits >> 16) | 0x40;                         // rounding could turn a NaN into infinity
  *reinterpret_cast<HalfBits*>(p) = __builtin_convertvector(v == v ? rounded : quiet_nan, HalfBits);
}

// Images (N, height, width, channels) in memory.
template <typename T>
struct Images {
  T* data;
  int64_t height, width;
  int64_t pixel_stride;  // floats between adjacent pixels: the number of channels of all groups

  T* At(int64_t n, int64_t y, int64_t x, int64_t channel = 0) const {
    return data + ((n * height + y) * width + x) * pixel_stride + channel;
  }
};
