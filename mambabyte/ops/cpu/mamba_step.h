// The step's arguments, and what goes from byte to byte: n-grams, convolution and scan of a window, and their replay.
#pragma once
#include <atomic>

#include "kernel.h"

namespace mambabyte {

// What is derived from conv_weight, dt_proj and A_log is kept from step to step in `kept`, for every block of kLanes
// channels beside a copy of what it was derived from; it must be full of NaN before the first step.
struct MambaStepBlock {
  const float *norm_weight, *norm_bias;                              // (d); the bias may be null
  const void* in_proj;                                               // (2D, d)
  const float *conv_weight, *conv_bias;                              // (D, W), (D)
  const void* x_proj;                                                // (R + 2N, D)
  const float *dt_proj, *dt_bias;                                    // (D, R), (D)
  const float *A_log, *D;                                            // (D, N), (D)
  const void* out_proj;                                              // (d, D)
  const float *in_proj_scale, *x_proj_scale, *out_proj_scale;        // of each row; null but for int8
  float* kept;                                                       // 2 (W + R + N) D, with D a multiple of kLanes
};

// The next state may be written over the one before.
struct MambaStepState {
  const float *conv, *scan;  // (B, W-1, D), (B, D, N)
  float *next_conv, *next_scan;
};

// As `mambabyte.models.ngram_embedding` has it. n is the longest n-gram, 1 if there are none.
struct MambaStepEmbedding {
  const float *embedding, *tables, *projection;  // (V, d), ((n - 1) buckets, width), (d, (n - 1) width)
  int64_t longest, buckets, width;
};

struct MambaStepArguments {
  int64_t batch, length, layers, d_model, d_inner, states, width, rank, vocabulary;
  int32_t threads, rms;
  int32_t storage;    // of the void pointers: 0 fp32, 1 bf16, 2 int8
  int32_t verify;     // whether parameters may have changed since the last step
  int32_t last_only;  // whether only the last byte of each row needs logits
  float epsilon;
  MambaStepEmbedding embedding;
  const float* x;            // (B, L, d), the embedded bytes; or null, for
  const int64_t* bytes;      // (B, L)
  const int64_t* history;    // (B, n - 1), the last bytes plus one, the newest at the end; 0 where there are none
  int64_t* next_history;     // may be the same
  const void* head;          // (V, d)
  const float* head_scale;   // (V); null but for int8
  const float *norm_weight, *norm_bias;  // of the final norm
  const MambaStepBlock* blocks;
  const MambaStepState* state;
  float* inputs;          // (layers, B L (3D + R + 2N)), which the window leaves for a replay; or null
  const int64_t* counts;  // (B), the bytes of the window that a replay reads again
  float* logits;          // (B, L, V), or (B, V) of the last bytes
  float* hidden;          // (B, L, d), or (B, d): what the head has read; or null
};

// What goes from byte to byte; in a layer, for one block of up to kLanes channels at a time.
//
// A window leaves what went into convolution and scan, and the caller keeps the state before it. From these the state
// after fewer of its bytes is made by the same arithmetic, without any product (ReplaySSM's way). The states after each
// byte would take about N / 3 times as much memory as their inputs do.
class MambaRecurrence {
 public:
  explicit MambaRecurrence(const MambaStepArguments& arguments)
      : arguments_(arguments), projected_(arguments.rank + 2 * arguments.states),
        positions_(arguments.batch * arguments.length) {}

  // The n-grams' state after `count` bytes of a row's window.
  void remember(int64_t row, int64_t count) const {
    const int64_t before = arguments_.embedding.longest - 1;
    for (int64_t j = 0; j < before; ++j) arguments_.next_history[row * before + j] = symbol(row, count - before + j);
  }

  // The layer's state of rows that keep fewer bytes than the window has.
  void replay(int64_t layer, int64_t channel, int lanes) const {
    const MambaStepBlock& block = arguments_.blocks[layer];
    const MambaStepState& state = arguments_.state[layer];
    const Inputs in = inputs(arguments_.inputs, layer);
    const int64_t N = arguments_.states;
    const float* rate = rates(block, channel, lanes);
    for (int64_t row = 0; row < arguments_.batch; ++row) {
      const int64_t count = arguments_.counts[row];
      if (count == arguments_.length) continue;
      shift(state, in, row, count, channel, lanes);
      const float* before = state.scan + (row * arguments_.d_inner + channel) * N;
      float* after = state.next_scan + (row * arguments_.d_inner + channel) * N;
      if (count == 0) std::memmove(after, before, lanes * N * sizeof(float));
      for (int64_t position = row * arguments_.length, t = 0; t < count; ++t, ++position, before = after) {
        const float *B = in.parameters + position * projected_ + arguments_.rank;
        const int64_t place = position * arguments_.d_inner + channel;
        recur(rate, before, after, load(in.dt + place, lanes), load(in.u + place, lanes), B, B + N, lanes);
      }
    }
  }

 protected:
  // Of one layer, for every position.
  struct Inputs {
    float *x, *u, *dt;  // (B, L, D): of the convolution and of the scan, and its step sizes
    float* parameters;  // (B, L, R + 2N)
  };

  int64_t inputs_size() const { return positions_ * (3 * arguments_.d_inner + projected_); }

  Inputs inputs(float* memory, int64_t layer) const {
    const int64_t size = positions_ * arguments_.d_inner;
    memory += layer * inputs_size();
    return {memory, memory + size, memory + 2 * size, memory + 3 * size};
  }

  // The byte plus one at a place of a row's window, or before it.
  int64_t symbol(int64_t row, int64_t at) const {
    const int64_t before = arguments_.embedding.longest - 1;
    return at < 0 ? arguments_.history[(row + 1) * before + at] : arguments_.bytes[row * arguments_.length + at] + 1;
  }

  // The rows of the tables for the n-grams that end at a position, side by side.
  void look_up(int64_t position, float* features) const {
    constexpr uint64_t kMultiplier = 0x2545F4914F6CDD1D;
    const MambaStepEmbedding& ngrams = arguments_.embedding;
    const int64_t row = position / arguments_.length, at = position % arguments_.length;
    uint64_t hash = uint64_t(symbol(row, at)) * kMultiplier;
    for (int64_t back = 1; back < ngrams.longest; ++back, features += ngrams.width) {
      hash = (hash + uint64_t(symbol(row, at - back))) * kMultiplier;
      const int64_t bucket = (int64_t(hash) >> 33) % ngrams.buckets;
      const int64_t found = (bucket < 0 ? bucket + ngrams.buckets : bucket) + (back - 1) * ngrams.buckets;
      std::memcpy(features, ngrams.tables + found * ngrams.width, ngrams.width * sizeof(float));
    }
  }

  // u = silu(conv(x)), and the inputs that the next byte needs
  void convolve(const MambaStepBlock& block, const MambaStepState& state, const Inputs& in, int64_t channel,
                int lanes) const {
    const int64_t history = arguments_.width - 1, inner = arguments_.d_inner;
    const float* taps = columns(block.conv_weight + channel * arguments_.width, arguments_.width, lanes,
                                kept(block, channel));
    const Vec bias = load(block.conv_bias + channel, lanes);
    for (int64_t row = 0; row < arguments_.batch; ++row) {
      const float* before = state.conv + row * history * inner + channel;
      const float* x = in.x + row * arguments_.length * inner + channel;
      // A few rows ahead, as the hardware does not find them: all rows do less here than one load from memory takes.
      for (int64_t j = 0; j < history; ++j) __builtin_prefetch(before + (4 * history + j) * inner);
      for (int64_t t = 0; t < arguments_.length; ++t) {
        Vec total = bias;
        for (int64_t j = 0; j <= history; ++j) {
          const int64_t at = t - history + j;
          const Vec input = load(at < 0 ? before + (at + history) * inner : x + at * inner, lanes);
          total = multiply_add(load(taps + j * kLanes, kLanes), input, total);
        }
        store(in.u + (row * arguments_.length + t) * inner + channel, total * sigmoid(total), lanes);
      }
      shift(state, in, row, arguments_.length, channel, lanes);
    }
  }

  // Step size, recurrence, skip and gate: y (B, L, D) from z (B, L, D).
  void scan(const MambaStepBlock& block, const MambaStepState& state, const Inputs& in, const float* z, float* y,
            int64_t channel, int lanes) const {
    const int64_t N = arguments_.states, rank = arguments_.rank;
    const float* dt_proj = columns(block.dt_proj + channel * rank, rank, lanes, kept(block, channel) + dt_kept());
    const float* rate = rates(block, channel, lanes);
    const Vec bias = load(block.dt_bias + channel, lanes), D = load(block.D + channel, lanes);
    for (int64_t row = 0; row < arguments_.batch; ++row) {
      const float* before = state.scan + (row * arguments_.d_inner + channel) * N;
      float* after = state.next_scan + (row * arguments_.d_inner + channel) * N;
      for (int64_t k = 0; k < lanes * N; k += 16) __builtin_prefetch(before + arguments_.d_inner * N + k);  // the next
      for (int64_t position = row * arguments_.length, t = 0; t < arguments_.length;
           ++t, ++position, before = after) {
        const float *parameters = in.parameters + position * projected_, *B = parameters + rank;
        const int64_t place = position * arguments_.d_inner + channel;
        Vec raw = bias;
        for (int64_t j = 0; j < rank; ++j)
          raw = multiply_add(load(dt_proj + j * kLanes, kLanes), splat(parameters[j]), raw);
        const Vec dt = softplus(raw).value, u = load(in.u + place, lanes), gate = load(z + place, lanes);
        store(in.dt + place, dt, lanes);
        const Vec out = recur(rate, before, after, dt, u, B, B + N, lanes);
        store(y + place, multiply_add(D, u, out) * gate * sigmoid(gate), lanes);
      }
    }
  }

 private:
  // The convolution's inputs after `count` bytes of a row's window: they are in the window, or were there before it.
  void shift(const MambaStepState& state, const Inputs& in, int64_t row, int64_t count, int64_t channel,
             int lanes) const {
    const int64_t history = arguments_.width - 1, inner = arguments_.d_inner;
    const float* before = state.conv + row * history * inner + channel;
    float* after = state.next_conv + row * history * inner + channel;
    const float* x = in.x + row * arguments_.length * inner + channel;
    for (int64_t j = 0; j < history; ++j) {
      const int64_t at = count - history + j;
      store(after + j * inner, load(at < 0 ? before + (at + history) * inner : x + at * inner, lanes), lanes);
    }
  }

  // One byte of the recurrence: <C, h>. Not inlined, so that a replay has the same bits.
  [[gnu::noinline]] Vec recur(const float* rate, const float* before, float* after, Vec dt, Vec u, const float* B,
                              const float* C, int lanes) const {
    const int64_t N = arguments_.states;
    float steps[kLanes], inputs[kLanes];
    Vec totals[kLanes];
    store(steps, dt, kLanes);
    store(inputs, dt * u, kLanes);
    int i = 0;
    for (; i + 4 <= lanes; i += 4)
      recur<4>(rate + i * N, before + i * N, after + i * N, steps + i, inputs + i, B, C, totals + i);
    for (; i < lanes; ++i)
      recur<1>(rate + i * N, before + i * N, after + i * N, steps + i, inputs + i, B, C, totals + i);
    for (; i < kLanes; ++i) totals[i] = Vec{};
    return sums(totals);
  }

  // Of some neighbouring channels, whose N states lie side by side.
  template <int Channels>
  void recur(const float* rate, const float* before, float* after, const float* steps, const float* inputs,
             const float* B, const float* C, Vec* totals) const {
    const int64_t N = arguments_.states;
    Vec total[Channels] = {};
    for (int64_t n = 0; n < N; n += kLanes) {
      const int lanes = lanes_from(n, N);
      const Vec b_n = load(B + n, lanes), c_n = load(C + n, lanes);
      Vec decay[Channels];
      for (int i = 0; i < Channels; ++i) decay[i] = load(rate + i * N + n, lanes) * steps[i];
      exp2_all<Channels>(decay);
      for (int i = 0; i < Channels; ++i) {
        const Vec h = multiply_add(load(before + i * N + n, lanes), decay[i], b_n * inputs[i]);
        store(after + i * N + n, h, lanes);
        total[i] = multiply_add(h, c_n, total[i]);
      }
    }
    for (int i = 0; i < Channels; ++i) totals[i] = total[i];
  }

  // What `derive` makes of `count` parameters of a block of channels. It is kept with a copy of them, and made again when
  // they differ: training, loading and an edit of any kind change parameters in place.
  template <class Derive>
  const float* derived(const float* parameters, int64_t count, int64_t capacity, float* kept,
                       const Derive& derive) const {
    float* result = kept + capacity;
    if (arguments_.verify && std::memcmp(kept, parameters, count * sizeof(float))) {
      derive(result);
      std::atomic_thread_fence(std::memory_order_release);  // another step of this model may be under way
      std::memcpy(kept, parameters, count * sizeof(float));
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    return result;
  }

  // The columns of some rows, as vectors with these rows as their lanes.
  const float* columns(const float* rows, int64_t width, int lanes, float* kept) const {
    return derived(rows, lanes * width, kLanes * width, kept, [&](float* result) {
      for (int64_t j = 0; j < width; ++j)
        for (int i = 0; i < kLanes; ++i) result[j * kLanes + i] = i < lanes ? rows[i * width + j] : 0.0f;
    });
  }

  // A log2(e) of a block's channels, whose states lie end to end.
  const float* rates(const MambaStepBlock& block, int64_t channel, int lanes) const {
    const int64_t N = arguments_.states;
    const float* A_log = block.A_log + channel * N;
    float* memory = kept(block, channel) + dt_kept() + 2 * kLanes * arguments_.rank;
    return derived(A_log, lanes * N, kLanes * N, memory, [&](float* result) {
      for (int64_t k = 0; k < lanes * N; k += kLanes) {
        const int left = lanes_from(k, lanes * N);
        store(result + k, exp2(load(A_log + k, left) * kLog2E) * -kLog2E, left);
      }
    });
  }

  float* kept(const MambaStepBlock& block, int64_t channel) const {
    return block.kept + 2 * channel * (arguments_.width + arguments_.rank + arguments_.states);
  }

  int64_t dt_kept() const { return 2 * kLanes * arguments_.width; }  // where dt_proj is in it, behind the taps

 protected:
  const MambaStepArguments& arguments_;
  const int64_t projected_, positions_;
};

}  // namespace mambabyte
