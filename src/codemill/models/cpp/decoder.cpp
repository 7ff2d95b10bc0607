// A decoder's whole stack of layers in one call: one team of threads, a barrier where a thread needs what another wrote,
// nothing in between. Activations are bfloat16, sums float.

#include <omp.h>

#include <memory>

#include "attention.h"

struct Layer {
    const bf16 *attention_norm, *mlp_norm;
    Matrix qkv, out, gate_up, down;
};

struct Model {
    const Layer* layers;
    const bf16* norm;
    int64_t count, width, mlp, queries, groups, size;
    float eps;
};

namespace {

// Rows that the matrix unit may read to the end of their tile.
struct Buffer {
    std::unique_ptr<bf16[]> data;
    int64_t size = 0;
    bf16* room(int64_t rows, int64_t width) {
        int64_t wanted = round_up(rows, 32) * width;
        if (size < wanted) {
            data.reset(new bf16[wanted]());
            size = wanted;
        }
        return data.get();
    }
};

void normalise(const bf16* x, const bf16* weight, bf16* out, int64_t width, float eps) {
    float16 squares = splat(0);
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) {
        float16 v = widen16(x + d);
        squares += v * v;
    }
    float total = sum16(squares);
    for (; d < width; ++d) total += widen(x[d]) * widen(x[d]);
    float scale = 1.0f / std::sqrt(total / float(width) + eps);
    bf16 unit[kLanes];
    for (d = 0; d + kLanes <= width; d += kLanes) {
        narrow16(widen16(x + d) * scale, unit);
        narrow16(widen16(unit) * widen16(weight + d), out + d);
    }
    for (; d < width; ++d) out[d] = narrow(widen(narrow(widen(x[d]) * scale)) * widen(weight[d]));
}

constexpr int64_t kTogether = 4;  // up to so many rows every thread prepares all by itself, which saves a barrier

// A thread's work on rows first to last.
struct Share {
    int64_t first, last;
    Share(int64_t rows, int thread, int threads) : first(rows * thread / threads), last(rows * (thread + 1) / threads) {}
};

// Prepares the rows of products for all threads.
class Desk {
  public:
    Desk(int64_t rows, int thread, int threads, Rows& mine, Rows& shared)
        : rows_(rows), thread_(thread), threads_(threads), mine_(mine), shared_(shared) {}

    bool alone() const { return rows_ <= kTogether; }

    // `prepare(row)` writes a row of `values` (rows, K). With it nullptr they are there.
    template <typename Prepare>
    const Rows& lay_out(const Matrix& m, const bf16* values, Prepare prepare) {
        Rows& rows = alone() ? mine_ : shared_;
        bool integer = in_bytes(m, rows_);
        if (!alone()) {
#pragma omp single
            reserve(rows, m, values, integer);
        } else {
            reserve(rows, m, values, integer);
        }
        Share share = alone() ? Share(rows_, 0, 1) : Share(rows_, thread_, threads_);
        for (int64_t row = share.first; row < share.last; ++row) {
            prepare(row);
            if (integer) rows.split(row, m.inputs, by_vectors(m, rows_));
        }
        if (!alone()) {
#pragma omp barrier
        }
        return rows;
    }

  private:
    void reserve(Rows& rows, const Matrix& m, const bf16* values, bool integer) {
        rows.count = rows_;
        rows.values = values;
        if (integer) rows.room(round_up(rows_, 32), m.inputs);
    }

    int64_t rows_;
    int thread_, threads_;
    Rows &mine_, &shared_;
};

}  // namespace

extern "C" {

// The layers of a decoder over T new tokens: x (T, D) becomes the hidden states after the final norm; cosines (T, K) and
// sines (T, K/2) of their positions. Keys and values are written where `runs` says.
void forward(const Model* model, const Runs* runs, bf16* x, const bf16* cosines, const bf16* sines, int threads) {
    const int64_t tokens = runs->starts[runs->count], width = model->width;
    const Heads heads{int(model->queries), int(model->groups), int(model->size)};
    const int64_t across = (heads.queries + 2 * heads.groups) * heads.size, mixed_width = heads.queries * heads.size;
    static thread_local Buffer buffers[4];
    bf16* unit = buffers[0].room(tokens, width);
    bf16* qkv = buffers[1].room(tokens, across);
    bf16* mixed = buffers[2].room(tokens, mixed_width);
    bf16* gated = buffers[3].room(tokens, model->mlp);
    // Attention is shared out in tiles of 16 rows of one run and head.
    struct Tile {
        int32_t run, group;
        int64_t first, last;
    };
    std::vector<Tile> tiles;
    std::vector<int32_t> run_of(tokens);
    for (int64_t r = 0; r < runs->count; ++r) {
        int64_t rows = (runs->starts[r + 1] - runs->starts[r]) * heads.per_group();
        for (int64_t t = runs->starts[r]; t < runs->starts[r + 1]; ++t) run_of[t] = int32_t(r);
        for (int g = 0; g < heads.groups; ++g)
            for (int64_t first = 0; first < rows; first += 16)
                tiles.push_back({int32_t(r), g, first, std::min(first + 16, rows)});
    }
    static thread_local Rows of_this_thread;  // kept between steps; the team sees the caller's
    Rows& shared = of_this_thread;
    const auto nothing = [](int64_t) {};
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        static thread_local Rows mine;
        static thread_local Buffer own;
        static thread_local Scratch scratch;
        Desk desk(tokens, thread, team, mine, shared);
        bf16* h = desk.alone() ? own.room(tokens, width) : unit;
        Share share(tokens, thread, team);
        if (matrix_unit()) tiles_on();
        for (int64_t l = 0; l < model->count; ++l) {
            const Layer& layer = model->layers[l];
            const auto norm_first = [&](int64_t row) {
                normalise(x + row * width, layer.attention_norm, h + row * width, width, model->eps);
            };
            const auto norm_second = [&](int64_t row) {
                normalise(x + row * width, layer.mlp_norm, h + row * width, width, model->eps);
            };
            product(layer.qkv, {Sink::kStore, qkv, across}, desk.lay_out(layer.qkv, h, norm_first), thread, team);
#pragma omp barrier
            for (int64_t t = share.first; t < share.last; ++t)
                place(heads, *runs, l, run_of[t], t, qkv + t * across, cosines + t * heads.size,
                      sines + t * (heads.size / 2));
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
            for (size_t i = 0; i < tiles.size(); ++i)
                attend(scratch, heads, *runs, l, tiles[i].run, tiles[i].group, tiles[i].first, tiles[i].last, qkv, mixed);
            product(layer.out, {Sink::kAdd, x, width}, desk.lay_out(layer.out, mixed, nothing), thread, team);
#pragma omp barrier
            product(layer.gate_up, {Sink::kGate, gated, model->mlp}, desk.lay_out(layer.gate_up, h, norm_second), thread, team);
#pragma omp barrier
            product(layer.down, {Sink::kAdd, x, width}, desk.lay_out(layer.down, gated, nothing), thread, team);
#pragma omp barrier
        }
        for (int64_t t = share.first; t < share.last; ++t)
            normalise(x + t * width, model->norm, x + t * width, width, model->eps);
        if (matrix_unit()) tiles_off();
    }
}

// x (T, K), out (T, N). The rows are copied to where the matrix unit may read on to the end of its tile.
void linear(const Matrix* matrix, const bf16* x, bf16* out, int64_t rows, int threads) {
    static thread_local Buffer padded;
    bf16* values = padded.room(rows, matrix->inputs);
    std::memcpy(values, x, rows * matrix->inputs * sizeof(bf16));
    Rows shared;
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        static thread_local Rows mine;
        Desk desk(rows, thread, team, mine, shared);
        if (matrix_unit()) tiles_on();
        product(*matrix, {Sink::kStore, out, matrix->outputs}, desk.lay_out(*matrix, values, [](int64_t) {}), thread, team);
        if (matrix_unit()) tiles_off();
    }
}

// The highest logit of each row and its log-probability: logits (T, V), ids (T), logprobs (T).
void greedy(const bf16* logits, int64_t* ids, float* logprobs, int64_t rows, int64_t vocabulary, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < rows; ++t) {
        const bf16* row = logits + t * vocabulary;
        float16 high = splat(-INFINITY), sum = splat(0);
        int64_t v = 0;
        for (; v + kLanes <= vocabulary; v += kLanes) high = max16(widen16(row + v), high);
        float top = highest(high);
        for (; v < vocabulary; ++v) top = std::max(top, widen(row[v]));
        for (v = 0; v + kLanes <= vocabulary; v += kLanes) sum += exponential(widen16(row + v) - top);
        float total = sum16(sum);
        for (; v < vocabulary; ++v) total += exponential(widen(row[v]) - top);
        int64_t best = 0;
        while (best < vocabulary - 1 && !(widen(row[best]) == top)) ++best;
        ids[t] = best;
        logprobs[t] = -std::log(total);
    }
}

}  // extern "C"
