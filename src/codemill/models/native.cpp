// The small operations of decoding in bfloat16 on a CPU, each in one pass over its data. Matrix products stay with the
// framework; what is here would otherwise be many calls that each read and write everything again.
//
// Plain loops that a compiler vectorises for the machine it runs on; arithmetic is in float, rounding to nearest even.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using bf16 = uint16_t;

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

// exp by 2^n * p(r), |r| <= ln2/2: relative error below 2e-7, branch-free. 0 below -87, infinite above 88, NaN stays NaN.
inline float exponential(float x) {
    float bounded = std::min(std::max(x, -87.0f), 88.0f);
    float n = std::nearbyint(bounded * 1.44269504f);
    float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = uint32_t(int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    float out = p * scale;
    out = x < -87.0f ? 0.0f : out;
    out = x > 88.0f ? INFINITY : out;
    return x != x ? x : out;
}

// One key-value head of one sequence: `group` queries of size K against `count` cached positions, `stride` apart.
template <int K>
void attend(const float* queries, const bf16* keys, const bf16* values, int64_t stride, int64_t count, int group,
            float scale, float* scores, bf16* out) {
    for (int64_t s = 0; s < count; ++s) {
        const bf16* row = keys + s * stride;
        float key[K];
        for (int k = 0; k < K; ++k) key[k] = widen(row[k]);
        for (int r = 0; r < group; ++r) {
            float sum = 0;
            for (int k = 0; k < K; ++k) sum += queries[r * K + k] * key[k];
            scores[r * count + s] = sum * scale;
        }
    }
    float mixed[16][K];
    for (int r = 0; r < group; ++r) {
        float* row = scores + r * count;
        float highest = row[0], total = 0;
        for (int64_t s = 1; s < count; ++s) highest = row[s] > highest ? row[s] : highest;
        for (int64_t s = 0; s < count; ++s) total += row[s] = exponential(row[s] - highest);
        for (int64_t s = 0; s < count; ++s) row[s] /= total;
        for (int k = 0; k < K; ++k) mixed[r][k] = 0;
    }
    for (int64_t s = 0; s < count; ++s) {
        const bf16* row = values + s * stride;
        float value[K];
        for (int k = 0; k < K; ++k) value[k] = widen(row[k]);
        for (int r = 0; r < group; ++r) {
            float weight = scores[r * count + s];
            for (int k = 0; k < K; ++k) mixed[r][k] += weight * value[k];
        }
    }
    for (int r = 0; r < group; ++r)
        for (int k = 0; k < K; ++k) out[r * K + k] = narrow(mixed[r][k]);
}

// The half-split rotation of a head.
inline void rotate(const bf16* head, const bf16* cosines, const bf16* sines, int size, float* out) {
    int half = size / 2;
    for (int k = 0; k < half; ++k) {
        float a = widen(head[k]), b = widen(head[half + k]), c = widen(cosines[k]), s = widen(sines[k]);
        out[k] = a * c - b * s;
        out[half + k] = b * c + a * s;
    }
}

}  // namespace

extern "C" {

// x, out (T, D); weight (D).
void rms_norm(const bf16* x, const bf16* weight, bf16* out, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 65536)
    for (int64_t t = 0; t < rows; ++t) {
        const bf16* in = x + t * width;
        float squares = 0;
        for (int64_t d = 0; d < width; ++d) squares += widen(in[d]) * widen(in[d]);
        float scale = 1.0f / std::sqrt(squares / float(width) + eps);
        for (int64_t d = 0; d < width; ++d)
            out[t * width + d] = narrow(widen(narrow(widen(in[d]) * scale)) * widen(weight[d]));
    }
}

// gate_up (T, 2F), out (T, F): silu(gate) * up.
void swiglu(const bf16* gate_up, bf16* out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 16384)
    for (int64_t t = 0; t < rows; ++t) {
        const bf16 *gate = gate_up + t * 2 * width, *up = gate + width;
        for (int64_t f = 0; f < width; ++f) {
            float g = widen(gate[f]);
            out[t * width + f] = narrow(g / (1.0f + exponential(-g)) * widen(up[f]));
        }
    }
}

// A step of one token per sequence: turn queries and keys, append key and value to the cache, attend. Returns 0, or 1 for
// sizes that are not handled (nothing is done then).
// qkv (B, (H + 2G) K); cosines (B, K), sines (B, K/2) of the new positions; keys, values (B, positions, G, K); lengths (B) held
// so far; out (B, H K).
int decode_attention(const bf16* qkv, const bf16* cosines, const bf16* sines, bf16* keys, bf16* values,
                     const int64_t* lengths, bf16* out, int64_t batch, int heads, int groups, int size,
                     int64_t positions, float scale, int threads) {
    int per_group = heads / groups;
    if ((size != 64 && size != 128) || per_group > 16) return 1;
    int64_t stride = int64_t(groups) * size, longest = *std::max_element(lengths, lengths + batch) + 1;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scores(size_t(per_group) * longest), turned(size_t(per_group + 1) * size);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < batch * groups; ++item) {
            int64_t b = item / groups, g = item % groups;
            const bf16 *row = qkv + b * (heads + 2 * groups) * size, *c = cosines + b * size, *s = sines + b * (size / 2);
            for (int r = 0; r < per_group; ++r) rotate(row + (g * per_group + r) * size, c, s, size, &turned[r * size]);
            float* key = &turned[per_group * size];
            rotate(row + (heads + g) * size, c, s, size, key);
            int64_t at = b * positions * stride + lengths[b] * stride + g * size;
            for (int k = 0; k < size; ++k) keys[at + k] = narrow(key[k]);
            std::memcpy(values + at, row + (heads + groups + g) * size, size * sizeof(bf16));
            auto run = size == 64 ? attend<64> : attend<128>;
            int64_t first = b * positions * stride + g * size;
            run(turned.data(), keys + first, values + first, stride, lengths[b] + 1, per_group, scale, scores.data(),
                out + b * heads * size + g * per_group * size);
        }
    }
    return 0;
}

// The highest logit of each row and its log-probability: logits (T, V), ids (T), logprobs (T).
void greedy(const bf16* logits, int64_t* ids, float* logprobs, int64_t rows, int64_t vocabulary, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < rows; ++t) {
        const bf16* row = logits + t * vocabulary;
        float highest = -INFINITY, total = 0;
        for (int64_t v = 0; v < vocabulary; ++v) highest = std::max(highest, widen(row[v]));
        for (int64_t v = 0; v < vocabulary; ++v) total += exponential(widen(row[v]) - highest);
        int64_t best = 0;
        while (best < vocabulary - 1 && !(widen(row[best]) == highest)) ++best;
        ids[t] = best;
        logprobs[t] = -std::log(total);
    }
}

}  // extern "C"
