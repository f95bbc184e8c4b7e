// Registers of floats, as wide as the processor has them.

#pragma once

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
inline Vec Load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void Store(float* p, const Vec& v) { *reinterpret_cast<Vec*>(p) = v; }
