// Products of a few to many rows with a weight matrix that is stored for reading: once, in order, in whole cache lines.
//
// A matrix (N, K) lies in strips of 16 outputs, N filled up with zeros to a multiple of 32, K a multiple of 64:
//   bf16   strips[N/16][K/2][16][2]: the layout of the bfloat16 instructions of both AVX-512 and AMX.
//   int8   strips[N/16][K/4][16][4], one scale per output: that of their integer instructions.
//   int4   as int8, but codes of a table of 16 signed bytes, of two rows (k/4, k/4 + 1) in the low and the high half of a
//          byte; one scale per output and 32 inputs.
// For products of integers a row of x is rounded to 16 bits of its largest value, finer than the bfloat16 it came in, and
// handed over as high and low bytes; sums are then exact. For many rows int4 is made bfloat16 on the way instead.

#pragma once

#include <vector>

#include "vector.h"

#if defined(CODEMILL_AVX512) && defined(__AVX512VNNI__)
#define CODEMILL_VNNI 1
#endif
#if defined(CODEMILL_AVX512) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define CODEMILL_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum Kind : int64_t { kBf16 = 0, kInt8 = 1, kInt4 = 2 };

struct Matrix {
    const uint8_t* data;
    const float* scales;  // int8: (N); none otherwise
    const bf16* groups;   // int4: scales (N/16, K/32, 16); none otherwise
    const int32_t* sums;  // int8: the sum of each output's weights (N)
    const bf16* bias;     // (N) or none
    int64_t outputs, inputs, kind;
};

constexpr int kStrip = 16, kPair = 32;  // outputs
constexpr int kDepth = 32;              // inputs of a bfloat16 tile, and of a group of int4
constexpr int kDeep = 64;               // inputs of an integer tile
typedef int32_t int16v __attribute__((vector_size(64)));

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

inline int64_t strip_bytes(const Matrix& m) {
    return m.inputs * kStrip * (m.kind == kBf16 ? 4 : m.kind == kInt8 ? 2 : 1) / 2;
}

// The values of int4 codes: quantiles of a normal distribution (arXiv 2305.14314, NF4), in 127ths.
alignas(16) constexpr int8_t kCodes[16] = {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127};

// What is done with 32 outputs of a row once they are summed.
struct Sink {
    enum { kStore, kAdd, kGate } what;
    bf16* out;
    int64_t stride;
};

inline void finish(const Matrix& m, const Sink& sink, int64_t pair, int64_t row, float16 first, float16 second) {
    int64_t at = pair * kPair;
    if (m.bias) {
        first += widen16(m.bias + at);
        second += widen16(m.bias + at + kStrip);
    }
    if (sink.what == Sink::kGate)  // a strip of gates and its strip of values
        return narrow16(silu(first) * second, sink.out + row * sink.stride + pair * kStrip);
    bf16* out = sink.out + row * sink.stride + at;
    bool whole = at + kPair <= m.outputs;
    bf16 edge[kPair] = {};
    if (sink.what == Sink::kAdd) {
        const bf16* old = out;
        if (!whole) {
            std::memcpy(edge, out, (m.outputs - at) * sizeof(bf16));
            old = edge;
        }
        first += widen16(old);
        second += widen16(old + kStrip);
    }
    bf16* to = whole ? out : edge;
    narrow16(first, to);
    narrow16(second, to + kStrip);
    if (!whole) std::memcpy(out, edge, (m.outputs - at) * sizeof(bf16));
}

// The lowest byte of each lane.
inline void store_bytes(word16 value, void* to) {
#ifdef CODEMILL_AVX512
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)value));
#else
    uint8_t out[kLanes];
    for (int i = 0; i < kLanes; ++i) out[i] = uint8_t(value[i]);
    std::memcpy(to, out, kLanes);
#endif
}

// The rows of a product as its kernels read them: values, or these split into bytes. The high bytes are signed for the
// matrix unit and moved by 128, to be unsigned, for vectors.
struct Rows {
    int64_t count = 0;
    const bf16* values = nullptr;  // (count, K), with memory up to a multiple of 32 rows
    std::vector<uint8_t> high, low;
    std::vector<float> scales;  // of a row: what one unit stands for

    void room(int64_t rows, int64_t inputs) {
        if (int64_t(high.size()) < rows * inputs) {
            high.resize(rows * inputs);
            low.resize(rows * inputs);
        }
        if (int64_t(scales.size()) < rows) scales.resize(rows);
    }

    void split(int64_t row, int64_t inputs, bool move) {
        const bf16* x = values + row * inputs;
        float16 most = splat(0), spoilt = splat(0);
        for (int64_t k = 0; k < inputs; k += kLanes) {
            float16 v = widen16(x + k);
            most = max16(v < 0 ? -v : v, most);
            spoilt += v - v;  // NaN for what is not finite, which integers could not say
        }
        float largest = highest(most);
        float inverse = largest > 0 && largest < INFINITY ? 32767.0f / largest : 0.0f;
        scales[row] = largest / 32767.0f + sum16(spoilt);
        for (int64_t k = 0; k < inputs; k += kLanes) {
            float16 scaled = widen16(x + k) * inverse + 12582912.0f;  // 1.5 * 2^23: rounds to nearest
            word16 whole = (word16)scaled - 0x4b400000u;  // the low 16 bits: signed high byte, unsigned low byte
            store_bytes((whole >> 8) ^ (move ? 0x80u : 0u), &high[row * inputs + k]);
            store_bytes(whole, &low[row * inputs + k]);
        }
    }
};

inline float16 to_float(int16v value) { return __builtin_convertvector(value, float16); }

// acc + the four products of unsigned bytes `pair` with signed bytes, lane by lane.
inline int16v dot_bytes(int16v acc, word16 weights, uint32_t four) {
#ifdef CODEMILL_VNNI
    return (int16v)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(int(four)), (__m512i)weights);
#else
    for (int byte = 0; byte < 4; ++byte) {
        int16v w = ((int16v)(weights << (24 - 8 * byte))) >> 24;
        acc += w * int((four >> (8 * byte)) & 255);
    }
    return acc;
#endif
}

// The bytes of rows 2v and 2v + 1 that 64 bytes of codes stand for.
inline void decode(const uint8_t* from, word16& even, word16& odd) {
    word16 codes = load<word16>(from);
    word16 low = codes & 0x0f0f0f0fu, high = (codes >> 4) & 0x0f0f0f0fu;
#ifdef CODEMILL_AVX512
    __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kCodes)));
    even = (word16)_mm512_shuffle_epi8(table, (__m512i)low);
    odd = (word16)_mm512_shuffle_epi8(table, (__m512i)high);
#else
    uint8_t a[64], b[64];
    std::memcpy(a, &low, 64);
    std::memcpy(b, &high, 64);
    for (int i = 0; i < 64; ++i) a[i] = uint8_t(kCodes[a[i]]), b[i] = uint8_t(kCodes[b[i]]);
    even = load<word16>(a);
    odd = load<word16>(b);
#endif
}

inline void fetch_ahead(const uint8_t* at) { __builtin_prefetch(at + 4096, 0, 2); }

// R rows by vector instructions, the weights read once. --------------------------------------------------------------

template <int R>
void vector_bf16(const Matrix& m, const Sink& sink, const Rows& x, int64_t row, int64_t pair) {
    const uint8_t *one = m.data + 2 * pair * strip_bytes(m), *two = one + strip_bytes(m);
    constexpr int U = R == 1 ? 4 : R == 2 ? 2 : 1;  // chains of sums, so that one need not wait for itself
    float16 sums[R][2][U] = {};
    const bf16* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = x.values + (row + r) * m.inputs;
    for (int64_t k = 0; k < m.inputs / 2; k += U)
        for (int u = 0; u < U; ++u) {
            word16 a = load<word16>(one + (k + u) * 64), b = load<word16>(two + (k + u) * 64);
            for (int r = 0; r < R; ++r) {
                uint32_t inputs = load<uint32_t>(rows[r] + 2 * (k + u));
                sums[r][0][u] = dot_pairs(sums[r][0][u], a, inputs);
                sums[r][1][u] = dot_pairs(sums[r][1][u], b, inputs);
            }
        }
    for (int r = 0; r < R; ++r) {
        for (int u = 1; u < U; ++u) {
            sums[r][0][0] += sums[r][0][u];
            sums[r][1][0] += sums[r][1][u];
        }
        finish(m, sink, pair, row + r, sums[r][0][0], sums[r][1][0]);
    }
}

template <int R>
void vector_int8(const Matrix& m, const Sink& sink, const Rows& x, int64_t row, int64_t pair) {
    int16v sums[R][2][2] = {};
    for (int64_t k = 0; k < m.inputs / 4; ++k)
        for (int s = 0; s < 2; ++s) {
            word16 weights = load<word16>(m.data + (2 * pair + s) * strip_bytes(m) + k * 64);
            for (int r = 0; r < R; ++r) {
                int64_t at = (row + r) * m.inputs + 4 * k;
                sums[r][s][0] = dot_bytes(sums[r][s][0], weights, load<uint32_t>(&x.high[at]));
                sums[r][s][1] = dot_bytes(sums[r][s][1], weights, load<uint32_t>(&x.low[at]));
            }
        }
    for (int r = 0; r < R; ++r) {
        float16 out[2];
        for (int s = 0; s < 2; ++s) {
            int64_t at = pair * kPair + s * kStrip;
            int16v high = sums[r][s][0] - 128 * load<int16v>(m.sums + at);
            out[s] = (to_float(high) * 256.0f + to_float(sums[r][s][1])) * load<float16>(m.scales + at) * x.scales[row + r];
        }
        finish(m, sink, pair, row + r, out[0], out[1]);
    }
}

template <int R>
void vector_int4(const Matrix& m, const Sink& sink, const Rows& x, int64_t row, int64_t pair) {
    float16 out[R][2] = {};
    int64_t groups = m.inputs / kDepth;
    for (int64_t g = 0; g < groups; ++g)
        for (int s = 0; s < 2; ++s) {
            const uint8_t* from = m.data + (2 * pair + s) * strip_bytes(m) + g * kDepth * kStrip / 2;
            int16v sums[R][2] = {}, moved = {};
            for (int v = 0; v < kDepth / 8; ++v) {
                word16 weights[2];
                decode(from + v * 64, weights[0], weights[1]);
                for (int half = 0; half < 2; ++half) {
                    moved = dot_bytes(moved, weights[half], 0x80808080u);
                    for (int r = 0; r < R; ++r) {
                        int64_t at = (row + r) * m.inputs + g * kDepth + 4 * (2 * v + half);
                        sums[r][0] = dot_bytes(sums[r][0], weights[half], load<uint32_t>(&x.high[at]));
                        sums[r][1] = dot_bytes(sums[r][1], weights[half], load<uint32_t>(&x.low[at]));
                    }
                }
            }
            float16 scale = widen16(m.groups + ((2 * pair + s) * groups + g) * kStrip);
            for (int r = 0; r < R; ++r)  // both sums together fit: 32 inputs of 16 bits by 7 bits
                out[r][s] += to_float((sums[r][0] - moved) * 256 + sums[r][1]) * scale;
        }
    for (int r = 0; r < R; ++r)
        finish(m, sink, pair, row + r, out[r][0] * x.scales[row + r], out[r][1] * x.scales[row + r]);
}

// A group of 32 inputs of a strip of int4 as a bfloat16 tile.
inline void unpack_group(const Matrix& m, int64_t strip, int64_t group, bf16* to) {
    const uint8_t* from = m.data + strip * strip_bytes(m) + group * kDepth * kStrip / 2;
    float16 scale = widen16(m.groups + (strip * (m.inputs / kDepth) + group) * kStrip);
#ifdef CODEMILL_AVX512
    __m512 table = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(kCodes))));
    const __m512i half = _mm512_set1_epi32(0x8000);  // added before the lower half is dropped: to nearest
    for (int row = 0; row < 8; ++row) {
        __m512i codes = _mm512_srli_epi32(load<__m512i>(from + row / 2 * 64), 4 * (row % 2));
        for (int k = 0; k < 4; k += 2) {
            __m512 low = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 8 * k), table);
            __m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 8 * k + 8), table);
            __m512i a = _mm512_add_epi32(_mm512_castps_si512(_mm512_mul_ps(low, (__m512)scale)), half);
            __m512i b = _mm512_add_epi32(_mm512_castps_si512(_mm512_mul_ps(high, (__m512)scale)), half);
            __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b);
            _mm512_storeu_si512(to + row * 64 + k * 16, both);
        }
    }
#else
    for (int row = 0; row < 8; ++row)
        for (int i = 0; i < kStrip; ++i)
            for (int k = 0; k < 4; ++k) {
                int code = from[row / 2 * 64 + 4 * i + k] >> (4 * (row % 2)) & 15;
                to[row * 64 + k / 2 * 32 + 2 * i + k % 2] = narrow(float(kCodes[code]) * scale[i]);
            }
#endif
}

// 16 or 32 rows by the matrix unit. ---------------------------------------------------------------------------------

#ifdef CODEMILL_AMX

inline bool matrix_unit() {
    static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // the kernel hands the registers out on request
    return granted;
}

inline void tiles_on() {
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; ++tile) {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
    }
    _tile_loadconfig(config);
}

inline void tiles_off() { _tile_release(); }

// Tiles 0-3 are sums, 4 and 5 rows, 6 and 7 weights.
inline void matrix_bf16(const Matrix& m, const Sink& sink, const Rows& x, int64_t row, int64_t rows, int64_t pair,
                        const uint8_t* strips) {
    const uint8_t *one = strips, *two = one + m.inputs * kStrip * sizeof(bf16);
    const bf16 *top = x.values + row * m.inputs, *low = top + 16 * m.inputs;
    int64_t tiles = m.inputs / kDepth, stride = m.inputs * sizeof(bf16);
    alignas(64) float sums[4][16][16];
    _tile_zero(0);
    _tile_zero(1);
    if (rows > 16) {
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t t = 0; t < tiles; ++t) {
            _tile_loadd(4, top + t * kDepth, stride);
            _tile_loadd(6, one + t * 1024, 64);
            _tile_loadd(7, two + t * 1024, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, low + t * kDepth, stride);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, sums[2], 64);
        _tile_stored(3, sums[3], 64);
    } else {
        for (int64_t t = 0; t < tiles; ++t) {
            for (int line = 0; line < 16; line += 1) {
                fetch_ahead(one + t * 1024 + line * 64);
                fetch_ahead(two + t * 1024 + line * 64);
            }
            _tile_loadd(4, top + t * kDepth, stride);
            _tile_loadd(6, one + t * 1024, 64);
            _tile_loadd(7, two + t * 1024, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
        }
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    for (int64_t r = 0; r < rows; ++r)
        finish(m, sink, pair, row + r, load<float16>(sums[r / 16 * 2][r % 16]), load<float16>(sums[r / 16 * 2 + 1][r % 16]));
}

// Up to 16 rows. Tiles 0 and 1 are the sums of high bytes, 2 and 3 of low ones; 4 and 5 rows, 6 and 7 weights.
inline void matrix_int8(const Matrix& m, const Sink& sink, const Rows& x, int64_t row, int64_t rows, int64_t pair) {
    const uint8_t *one = m.data + 2 * pair * strip_bytes(m), *two = one + strip_bytes(m);
    const uint8_t *high = &x.high[row * m.inputs], *low = &x.low[row * m.inputs];
    alignas(64) int32_t sums[4][16][16];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t t = 0; t < m.inputs / kDeep; ++t) {
        _tile_loadd(6, one + t * 1024, 64);
        _tile_loadd(7, two + t * 1024, 64);
        _tile_loadd(4, high + t * kDeep, m.inputs);
        _tile_loadd(5, low + t * kDeep, m.inputs);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    for (int64_t r = 0; r < rows; ++r) {
        float16 out[2];
        for (int s = 0; s < 2; ++s) {
            float16 sum = to_float(load<int16v>(sums[s][r])) * 256.0f + to_float(load<int16v>(sums[2 + s][r]));
            out[s] = sum * load<float16>(m.scales + pair * kPair + s * kStrip) * x.scales[row + r];
        }
        finish(m, sink, pair, row + r, out[0], out[1]);
    }
}

#else

inline bool matrix_unit() { return false; }
inline void tiles_on() {}
inline void tiles_off() {}
inline void matrix_bf16(const Matrix&, const Sink&, const Rows&, int64_t, int64_t, int64_t, const uint8_t*) {}
inline void matrix_int8(const Matrix&, const Sink&, const Rows&, int64_t, int64_t, int64_t) {}

#endif

// Up to so many rows vector instructions are faster; making int4 bfloat16 costs as much as ten rows of them.
constexpr int64_t kFewRows[] = {3, 3, 8};
constexpr int64_t kResident = 1 << 20;    // bytes of rows that stay in a core's own cache while the weights pass by

template <int R>
void vector_rows(const Matrix& m, const Sink& sink, const Rows& x, int64_t row, int64_t pair) {
    if (m.kind == kBf16) return vector_bf16<R>(m, sink, x, row, pair);
    if (m.kind == kInt8) return vector_int8<R>(m, sink, x, row, pair);
    vector_int4<R>(m, sink, x, row, pair);
}

// Whether so many rows are left to vectors, and whether they are wanted in bytes then.
inline bool by_vectors(const Matrix& m, int64_t rows) { return rows <= kFewRows[m.kind] || !matrix_unit(); }
inline bool in_bytes(const Matrix& m, int64_t rows) {
    return m.kind == kInt8 || (m.kind == kInt4 && by_vectors(m, rows));
}

// This thread's share of a product. The caller has the tiles on if there are any.
inline void product(const Matrix& m, const Sink& sink, const Rows& x, int thread, int threads) {
    int64_t pairs = round_up(m.outputs, kPair) / kPair, first = pairs * thread / threads, last = pairs * (thread + 1) / threads;
    if (by_vectors(m, x.count)) {
        for (int64_t pair = first; pair < last; ++pair) {
            int64_t row = 0;
            for (; row + 4 <= x.count; row += 4) vector_rows<4>(m, sink, x, row, pair);
            if (x.count - row == 3) vector_rows<3>(m, sink, x, row, pair);
            if (x.count - row == 2) vector_rows<2>(m, sink, x, row, pair);
            if (x.count - row == 1) vector_rows<1>(m, sink, x, row, pair);
        }
        return;
    }
    static thread_local std::vector<bf16> unpacked;
    if (m.kind == kInt4) unpacked.resize(m.inputs * kPair);
    int64_t block = std::max<int64_t>(32, kResident / (m.inputs * 2) / 32 * 32), step = m.kind == kInt8 ? 16 : 32;
    for (int64_t start = 0; start < x.count; start += block)
        for (int64_t pair = first; pair < last; ++pair) {
            const uint8_t* strips = m.data + 2 * pair * strip_bytes(m);
            if (m.kind == kInt4) {
                strips = reinterpret_cast<const uint8_t*>(unpacked.data());
                for (int64_t i = 0; i < 2 * m.inputs / kDepth; ++i)  // groups of the first strip, then of the second
                    unpack_group(m, 2 * pair + i / (m.inputs / kDepth), i % (m.inputs / kDepth), &unpacked[i * 512]);
            }
            for (int64_t row = start; row < std::min(start + block, x.count); row += step) {
                int64_t rows = std::min(step, x.count - row);
                if (m.kind == kInt8)
                    matrix_int8(m, sink, x, row, rows, pair);
                else
                    matrix_bf16(m, sink, x, row, rows, pair, strips);
            }
        }
}
