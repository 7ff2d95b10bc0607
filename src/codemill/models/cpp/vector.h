// Sixteen floats at a time, bfloat16 pairs, and the few operations that all kernels here are made of. On x86-64 with
// AVX-512 these are single instructions; elsewhere the compiler lowers the vector types to what the machine has.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
#include <immintrin.h>
#define CODEMILL_AVX512 1
#endif

using bf16 = uint16_t;
typedef float float16 __attribute__((vector_size(64)));
typedef uint32_t word16 __attribute__((vector_size(64)));

constexpr int kLanes = 16;

inline float widen(bf16 value) {
    uint32_t bits = uint32_t(value) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline bf16 narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return bf16((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);  // a NaN must not round to infinity
}

template <typename V>
inline V load(const void* from) {
    V out;
    std::memcpy(&out, from, sizeof(V));
    return out;
}

inline float16 splat(float value) { return float16{} + value; }

// acc + low(weights) * low(pair) + high(weights) * high(pair), lane by lane: two rows of a product at once.
inline float16 dot_pairs(float16 acc, word16 weights, uint32_t pair) {
#ifdef CODEMILL_AVX512
    return (float16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(__m512i)weights, (__m512bh)_mm512_set1_epi32(int(pair)));
#else
    float low = widen(bf16(pair)), high = widen(bf16(pair >> 16));
    acc += (float16)(weights << 16) * low;
    return acc + (float16)(weights & 0xffff0000u) * high;
#endif
}

inline float16 widen16(const bf16* from) {
#ifdef CODEMILL_AVX512
    return (float16)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load<__m256i>(from)), 16));
#else
    float16 out;
    for (int i = 0; i < kLanes; ++i) out[i] = widen(from[i]);
    return out;
#endif
}

inline void narrow16(float16 value, bf16* to) {
#ifdef CODEMILL_AVX512
    __m256bh out = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &out, 32);
#else
    for (int i = 0; i < kLanes; ++i) to[i] = narrow(value[i]);
#endif
}

inline float sum16(float16 value) {
#ifdef CODEMILL_AVX512
    return _mm512_reduce_add_ps((__m512)value);
#else
    float out = 0;
    for (int i = 0; i < kLanes; ++i) out += value[i];
    return out;
#endif
}

inline float16 max16(float16 a, float16 b) { return a > b ? a : b; }

inline float highest(float16 value) {
    float out = value[0];
    for (int i = 1; i < kLanes; ++i) out = std::max(out, value[i]);
    return out;
}

// exp by 2^n * p(r), |r| <= ln2/2: relative error below 2e-7, branch-free. 0 below -87, infinite above 88, NaN stays NaN.
inline float16 exponential(float16 x) {
    float16 bounded = x < -87.0f ? splat(-87.0f) : x;
    bounded = bounded > 88.0f ? splat(88.0f) : bounded;
    float16 shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to nearest, and leaves n in the low bits
    float16 n = shifted - 12582912.0f;
    float16 r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float16 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    float16 scale = (float16)(((word16)shifted << 23) + (127u << 23));
    float16 out = p * scale;
    out = x < -87.0f ? splat(0.0f) : out;
    out = x > 88.0f ? splat(INFINITY) : out;
    return x != x ? x : out;
}

inline float exponential(float x) { return exponential(splat(x))[0]; }

inline float16 silu(float16 x) { return x / (1.0f + exponential(-x)); }
