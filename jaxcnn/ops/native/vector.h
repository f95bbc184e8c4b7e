// Registers of floats, as wide as the processor has them.

#pragma once

#include <cstdint>

#ifdef __AVX512F__
constexpr int kWide = 16;  // floats in a register
#else
constexpr int kWide = 8;
#endif
#if defined(__AVX2__) && defined(__FMA__)
constexpr bool kFast = true;
#else
constexpr bool kFast = false;
#endif

typedef float Vec __attribute__((vector_size(4 * kWide), aligned(4), may_alias));
typedef int32_t Places __attribute__((vector_size(4 * kWide)));  // of a register, as a shuffle takes them
inline Vec Load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
// The same, in a register for sure: what is used several times the compiler would rather read again each time.
inline Vec Held(const float* p) {
  Vec v = Load(p);
  asm("" : "+v"(v));
  return v;
}
inline void Store(float* p, const Vec& v) { *reinterpret_cast<Vec*>(p) = v; }
