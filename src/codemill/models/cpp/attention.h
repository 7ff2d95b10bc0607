// Attention over keys and values that lie in blocks of 32 tokens, for any number of new tokens per sequence.
//
// A block of one layer holds, for each key-value head g, its keys as [2][K/2][16][2] (two groups of 16 tokens, two of a
// head's K numbers side by side) and its values as [16][K][2] (two tokens side by side): both are then the right-hand side
// of a product as they lie, for vectors and for the matrix unit alike.

#pragma once

#include "product.h"

constexpr int kBlock = 32;  // tokens

// The sequences of a step and where their keys and values are. Runs of new tokens follow one another: run r has tokens
// starts[r] to starts[r + 1] and sees past[r] earlier ones.
struct Runs {
    const int32_t* tables;  // (R, width): numbers of blocks
    const int64_t *past, *starts;
    int64_t count, width;
    bf16 *keys, *values;             // of layer 0, block 0
    int64_t layer_stride;            // in numbers; blocks are G K 32 numbers apart
};

struct Heads {
    int queries, groups, size;
    int per_group() const { return queries / groups; }
    int64_t block() const { return int64_t(groups) * size * kBlock; }
};

// Turn a token's queries and keys (in the half-split layout) in place, and put its keys and values where they belong.
inline void place(const Heads& heads, const Runs& runs, int64_t layer, int64_t run, int64_t token, bf16* qkv,
                  const bf16* cosines, const bf16* sines) {
    int size = heads.size, half = size / 2;
    for (int head = 0; head < heads.queries + heads.groups; ++head) {
        bf16* at = qkv + head * size;
        for (int k = 0; k < half; k += kLanes) {
            float16 a = widen16(at + k), b = widen16(at + half + k), c = widen16(cosines + k), s = widen16(sines + k);
            narrow16(a * c - b * s, at + k);
            narrow16(b * c + a * s, at + half + k);
        }
    }
    int64_t position = runs.past[run] + token - runs.starts[run], offset = position % kBlock;
    bool last = token + 1 == runs.starts[run + 1] && position - offset >= runs.past[run];
    int64_t block = layer * runs.layer_stride + runs.tables[run * runs.width + position / kBlock] * heads.block();
    for (int g = 0; g < heads.groups; ++g) {
        const bf16 *key = qkv + (heads.queries + g) * size, *value = key + heads.groups * size;
        bf16* keys = runs.keys + block + g * size * kBlock + offset / 16 * 16 * size + offset % 16 * 2;
        bf16* values = runs.values + block + g * size * kBlock + offset / 2 * 2 * size + offset % 2;
        for (int k = 0; k < size; k += 2) std::memcpy(keys + k / 2 * 32, key + k, 4);
        for (int k = 0; k < size; ++k) values[2 * k] = value[k];
        if (!last) continue;
        // What an earlier sequence left in a new block must not be met again: nothing times infinity is not nothing.
        if (offset % 2 == 0)
            for (int k = 0; k < size; ++k) values[2 * k + 1] = 0;
        int64_t rest = offset / 2 + 1;
        std::memset(runs.values + block + g * size * kBlock + rest * 2 * size, 0, (kBlock / 2 - rest) * 2 * size * sizeof(bf16));
    }
}

// Buffers of one thread.
struct Scratch {
    std::vector<float> scores;
    std::vector<bf16> weights;
    alignas(64) bf16 queries[16 * 128];
    alignas(64) float mixed[16][128];
};

// The weights of 16 rows of scores (rows, width): row r sees the first seen[r] of them. Returns one over each row's sum.
inline void soften(Scratch& s, int rows, int64_t width, const int64_t* seen, float scale, float* inverse) {
    for (int r = 0; r < rows; ++r) {
        float* row = &s.scores[r * width];
        bf16* out = &s.weights[r * width];
        for (int64_t i = seen[r]; i < width; ++i) row[i] = -INFINITY;
        float16 high = splat(-INFINITY);
        for (int64_t i = 0; i < width; i += kLanes) high = max16(high, load<float16>(row + i));
        float most = highest(high);
        float16 sum = splat(0);
        for (int64_t i = 0; i < width; i += kLanes) {
            float16 e = exponential((load<float16>(row + i) - most) * scale);
            sum += e;
            narrow16(e, out + i);
        }
        inverse[r] = 1.0f / sum16(sum);
    }
}

// Rows of queries (rows, K) against the first `blocks` blocks: scores (rows, blocks * 32).
inline void score(Scratch& s, const Heads& heads, int rows, const int32_t* table, const bf16* keys, int64_t blocks, bool unit) {
    int size = heads.size;
    int64_t width = blocks * kBlock;
    for (int64_t b = 0; b < blocks; ++b)
        for (int half = 0; half < 2; ++half) {
            const bf16* from = keys + table[b] * heads.block() + half * 16 * size;
            float* out = &s.scores[b * kBlock + half * 16];
#ifdef CODEMILL_AMX
            if (unit) {
                _tile_zero(0);
                _tile_loadd(4, s.queries, size * 2);
                _tile_loadd(6, from, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(5, s.queries + 32, size * 2);
                _tile_loadd(7, from + 512, 64);
                _tile_dpbf16ps(0, 5, 7);
                if (size == 128) {
                    _tile_loadd(4, s.queries + 64, size * 2);
                    _tile_loadd(6, from + 1024, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_loadd(5, s.queries + 96, size * 2);
                    _tile_loadd(7, from + 1536, 64);
                    _tile_dpbf16ps(0, 5, 7);
                }
                _tile_stored(0, out, width * sizeof(float));
                continue;
            }
#endif
            for (int r = 0; r < rows; ++r) {
                float16 sums[2] = {};
                for (int k = 0; k < size / 2; k += 2)
                    for (int u = 0; u < 2; ++u)
                        sums[u] = dot_pairs(sums[u], load<word16>(from + (k + u) * 32),
                                            load<uint32_t>(s.queries + r * size + 2 * (k + u)));
                float16 sum = sums[0] + sums[1];
                std::memcpy(out + r * width, &sum, 64);
            }
        }
}

// Weights (rows, blocks * 32) times values: s.mixed (rows, K).
inline void blend(Scratch& s, const Heads& heads, int rows, const int32_t* table, const bf16* values, int64_t blocks, bool unit) {
    int size = heads.size;
    int64_t width = blocks * kBlock;
    for (int part = 0; part < size; part += 64) {
#ifdef CODEMILL_AMX
        if (unit) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t b = 0; b < blocks; ++b) {
                const bf16* from = values + table[b] * heads.block() + 2 * part;
                _tile_loadd(4, &s.weights[b * kBlock], width * sizeof(bf16));
                _tile_loadd(5, from, size * 4);
                _tile_dpbf16ps(0, 4, 5);
                _tile_loadd(6, from + 32, size * 4);
                _tile_dpbf16ps(1, 4, 6);
                _tile_loadd(7, from + 64, size * 4);
                _tile_dpbf16ps(2, 4, 7);
                _tile_loadd(5, from + 96, size * 4);
                _tile_dpbf16ps(3, 4, 5);
            }
            _tile_stored(0, &s.mixed[0][part], sizeof(s.mixed[0]));
            _tile_stored(1, &s.mixed[0][part + 16], sizeof(s.mixed[0]));
            _tile_stored(2, &s.mixed[0][part + 32], sizeof(s.mixed[0]));
            _tile_stored(3, &s.mixed[0][part + 48], sizeof(s.mixed[0]));
            continue;
        }
#endif
        for (int r = 0; r < rows; ++r) {
            float16 sums[4] = {};
            for (int64_t b = 0; b < blocks; ++b) {
                const bf16* from = values + table[b] * heads.block() + 2 * part;
                for (int t = 0; t < kBlock / 2; ++t) {
                    uint32_t weights = load<uint32_t>(&s.weights[r * width + b * kBlock + 2 * t]);
                    for (int v = 0; v < 4; ++v)
                        sums[v] = dot_pairs(sums[v], load<word16>(from + t * 2 * size + v * 32), weights);
                }
            }
            std::memcpy(&s.mixed[r][part], sums, sizeof(sums));
        }
    }
}

// Attention of one key-value head: rows first to last of a run, a row being a token and one of the head's queries.
// qkv (T, H + 2G, K) with turned queries; out (T, H, K).
inline void attend(Scratch& s, const Heads& heads, const Runs& runs, int64_t layer, int64_t run, int group, int64_t first,
                   int64_t last, const bf16* qkv, bf16* out) {
    int size = heads.size, per = heads.per_group(), rows = int(last - first), across = heads.queries + 2 * heads.groups;
    const int32_t* table = runs.tables + run * runs.width;
    int64_t seen[16];
    for (int r = 0; r < rows; ++r) {
        int64_t token = (first + r) / per, head = group * per + (first + r) % per;
        seen[r] = runs.past[run] + token + 1;
        std::memcpy(s.queries + r * size, qkv + ((runs.starts[run] + token) * across + head) * size, size * sizeof(bf16));
    }
    int64_t blocks = round_up(seen[rows - 1], kBlock) / kBlock, width = blocks * kBlock;
    if (int64_t(s.scores.size()) < 16 * width) {
        s.scores.resize(32 * width);
        s.weights.resize(32 * width);
    }
    int64_t at = layer * runs.layer_stride + int64_t(group) * size * kBlock;
    bool unit = matrix_unit() && rows > 1;
    float inverse[16];
    score(s, heads, rows, table, runs.keys + at, blocks, unit);
    soften(s, rows, width, seen, 1.0f / std::sqrt(float(size)), inverse);
    blend(s, heads, rows, table, runs.values + at, blocks, unit);
    for (int r = 0; r < rows; ++r) {
        bf16* to = out + ((runs.starts[run] + (first + r) / per) * heads.queries + group * per + (first + r) % per) * size;
        for (int k = 0; k < size; k += kLanes) narrow16(load<float16>(&s.mixed[r][k]) * inverse[r], to + k);
    }
}
