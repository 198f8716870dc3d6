// One byte through a whole stack of Mamba blocks (arXiv 2312.00752, section 3.4) on a CPU: the step of generation.
//
//   x         = residual + update
//   (u, z)    = W_in norm(x)
//   u         = silu(conv(u))
//   (s, B, C) = W_x u
//   dt        = softplus(W_dt s + bias)
//   h         = exp(dt A) h + dt B u
//   y         = (<C, h> + D u) silu(z)
//   update    = W_out y
//
// At this size calls cost more time than arithmetic, so one call does all layers. One thread computes each number, in
// an order that depends only on the model's shape: a row's result is the same bit for bit in any batch and at any
// number of threads.
#include <atomic>
#include <type_traits>
#include <vector>

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

struct MambaStepState {
  const float *conv, *scan;  // (B, W-1, D), (B, D, N)
  float *next_conv, *next_scan;
};

struct MambaStepArguments {
  int64_t batch, layers, d_model, d_inner, states, width, rank, vocabulary;
  int32_t threads, rms;
  int32_t storage;  // of the void pointers: 0 fp32, 1 bf16, 2 int8
  int32_t verify;   // whether parameters may have changed since the last step
  float epsilon;
  const float* x;                        // (B, d), the embedded bytes
  const void* head;                      // (V, d)
  const float* head_scale;               // (V); null but for int8
  const float *norm_weight, *norm_bias;  // of the final norm
  const MambaStepBlock* blocks;
  const MambaStepState* state;
  float* logits;  // (B, V)
};

namespace {

#if defined(__AVX512F__)
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif
constexpr int kOutputs = 4, kAlone = 8;  // of a product at a time, for kRows rows or one: their sums fit in registers

// T is the type of the large matrices.
template <class T>
class MambaStep {
 public:
  explicit MambaStep(const MambaStepArguments& arguments)
      : arguments_(arguments), projected_(arguments.rank + 2 * arguments.states),
        residual_(arguments.x, arguments.x + arguments.batch * arguments.d_model), update_(arguments.batch * arguments.d_model),
        normed_(arguments.batch * arguments.d_model), uz_(2 * arguments.batch * arguments.d_inner),
        u_(arguments.batch * arguments.d_inner), parameters_(arguments.batch * projected_),
        y_(arguments.batch * arguments.d_inner) {}

  // Every thread of a parallel region calls this.
  void run() {
    FlushDenormals guard;
    const int64_t d_model = arguments_.d_model, d_inner = arguments_.d_inner;
    for (int64_t layer = 0; layer < arguments_.layers; ++layer) {
      const MambaStepBlock& block = arguments_.blocks[layer];
      const MambaStepState& state = arguments_.state[layer];
      normalise(block.norm_weight, block.norm_bias, layer > 0);
      share_blocks(d_inner, kLanes, [&](int64_t first, int64_t last) {
        for (int64_t half : {int64_t(0), d_inner})
          product(block.in_proj, block.in_proj_scale, d_model, normed_, &uz_[0], 2 * d_inner, half + first, half + last);
        convolve(block, state, first, int(last - first));
      });
      share_blocks(projected_, kAlone, [&](int64_t first, int64_t last) {
        product(block.x_proj, block.x_proj_scale, d_inner, u_, &parameters_[0], projected_, first, last);
      });
      share_blocks(d_inner, kLanes, [&](int64_t first, int64_t last) { scan(block, state, first, int(last - first)); });
      share_blocks(d_model, kLanes, [&](int64_t first, int64_t last) {
        product(block.out_proj, block.out_proj_scale, d_inner, y_, &update_[0], d_model, first, last);
      });
    }
    normalise(arguments_.norm_weight, arguments_.norm_bias, arguments_.layers > 0);
    share_blocks(arguments_.vocabulary, kLanes, [&](int64_t first, int64_t last) {
      product(arguments_.head, arguments_.head_scale, d_model, normed_, arguments_.logits, arguments_.vocabulary, first,
              last);
    });
  }

 private:
  // out[row, first:last] = scale[first:last] weight[first:last] x[row] for every row; weight (.., columns), out
  // (B, width). Not inlined, as it is large and has five callers.
  [[gnu::noinline]] void product(const void* weight, const float* scale, int64_t columns, const std::vector<float>& x,
                                 float* out, int64_t width, int64_t first, int64_t last) const {
    const auto dots = [&](auto outputs, auto rows, int64_t output, int64_t row) {
      constexpr int Outputs = decltype(outputs)::value, Rows = decltype(rows)::value;
      float sums[Outputs * Rows];
      dot<Outputs, Rows>(static_cast<const T*>(weight) + output * columns, &x[row * columns], columns, sums);
      for (int i = 0; i < Outputs; ++i)
        for (int j = 0; j < Rows; ++j)
          out[(row + j) * width + output + i] = scale ? scale[output + i] * sums[i * Rows + j] : sums[i * Rows + j];
    };
    const std::integral_constant<int, 1> one;
    const int64_t batch = arguments_.batch, alone = batch % kRows;
    for (int64_t row = 0; row + kRows <= batch; row += kRows) {
      int64_t output = first;
      for (; output + kOutputs <= last; output += kOutputs)
        dots(std::integral_constant<int, kOutputs>(), std::integral_constant<int, kRows>(), output, row);
      for (; output < last; ++output) dots(one, std::integral_constant<int, kRows>(), output, row);
    }
    for (int64_t row = batch - alone; row < batch; ++row) {
      int64_t output = first;
      for (; output + kAlone <= last; output += kAlone)
        dots(std::integral_constant<int, kAlone>(), one, output, row);
      for (; output < last; ++output) dots(one, one, output, row);
    }
  }

  // Each sum has a register of its own, so that its order depends on nothing else.
  template <int Outputs, int Rows>
  static void dot(const T* weight, const float* x, int64_t columns, float* sums) {
    constexpr int64_t kLine = 64 / sizeof(T);
    Vec total[Outputs][Rows] = {};
    const auto add = [&](int64_t k, int lanes) {
      Vec row[Rows];
      for (int j = 0; j < Rows; ++j) row[j] = load(x + j * columns + k, lanes);
      for (int i = 0; i < Outputs; ++i) {
        const Vec w = load(weight + i * columns + k, lanes);
        for (int j = 0; j < Rows; ++j) total[i][j] = multiply_add(w, row[j], total[i][j]);
      }
    };
    int64_t k = 0;
    for (; k + kLine <= columns; k += kLine) {
      // The rows that come next, which hardware prefetchers find too late.
      for (int i = 0; i < Outputs; ++i) __builtin_prefetch(weight + (Outputs + i) * columns + k);
      for (int64_t part = 0; part < kLine; part += kLanes) add(k + part, kLanes);
    }
    for (; k + kLanes <= columns; k += kLanes) add(k, kLanes);
    if (k < columns) add(k, int(columns - k));
    for (int i = 0; i < Outputs; ++i)
      for (int j = 0; j < Rows; ++j) sums[i * Rows + j] = sum(total[i][j]);
  }

  // residual += update; normed = norm(residual)
  void normalise(const float* weight, const float* bias, bool updated) {
    const int64_t width = arguments_.d_model;
    share_blocks(arguments_.batch, 1, [&](int64_t row, int64_t) {
      float *x = &residual_[row * width], *out = &normed_[row * width];
      Vec total = {}, squares = {};
      for (int64_t k = 0; k < width; k += kLanes) {
        const int lanes = lanes_from(k, width);
        Vec v = load(x + k, lanes);
        if (updated) v += load(&update_[row * width + k], lanes);
        store(x + k, v, lanes);
        total += v;
      }
      const float mean = arguments_.rms ? 0.0f : sum(total) / width;
      for (int64_t k = 0; k < width; ++k) out[k] = x[k] - mean;
      for (int64_t k = 0; k < width; k += kLanes) {
        const Vec v = load(out + k, lanes_from(k, width));
        squares += v * v;
      }
      const float scale = 1.0f / std::sqrt(sum(squares) / width + arguments_.epsilon);
      for (int64_t k = 0; k < width; ++k) out[k] = out[k] * scale * weight[k] + (bias ? bias[k] : 0.0f);
    });
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

  // u = silu(conv(u)) of up to kLanes channels, and the inputs that the next step needs
  void convolve(const MambaStepBlock& block, const MambaStepState& state, int64_t channel, int lanes) {
    const int64_t history = arguments_.width - 1;
    const float* taps = columns(block.conv_weight + channel * arguments_.width, arguments_.width, lanes,
                                kept(block, channel));
    const Vec bias = load(block.conv_bias + channel, lanes);
    for (int64_t row = 0; row < arguments_.batch; ++row) {
      const float* before = state.conv + row * history * arguments_.d_inner + channel;
      float* after = state.next_conv + row * history * arguments_.d_inner + channel;
      const Vec now = load(&uz_[2 * row * arguments_.d_inner + channel], lanes);
      Vec total = bias;
      for (int64_t j = 0; j <= history; ++j) {
        const Vec input = j < history ? load(before + j * arguments_.d_inner, lanes) : now;
        total += load(taps + j * kLanes, kLanes) * input;
        if (j > 0) store(after + (j - 1) * arguments_.d_inner, input, lanes);
      }
      store(&u_[row * arguments_.d_inner + channel], total * sigmoid(total), lanes);
    }
  }

  // Step size, recurrence, skip and gate of up to kLanes channels.
  void scan(const MambaStepBlock& block, const MambaStepState& state, int64_t channel, int lanes) {
    const int64_t N = arguments_.states, rank = arguments_.rank;
    float *dt_kept = kept(block, channel) + 2 * kLanes * arguments_.width, *rate_kept = dt_kept + 2 * kLanes * rank;
    const float* dt_proj = columns(block.dt_proj + channel * rank, rank, lanes, dt_kept);
    const float* A_log = block.A_log + channel * N;  // the channels' states lie end to end
    const float* rate = derived(A_log, lanes * N, kLanes * N, rate_kept, [&](float* result) {  // A log2(e)
      for (int64_t k = 0; k < lanes * N; k += kLanes) {
        const int left = lanes_from(k, lanes * N);
        store(result + k, exp2(load(A_log + k, left) * kLog2E) * -kLog2E, left);
      }
    });
    const Vec bias = load(block.dt_bias + channel, lanes), D = load(block.D + channel, lanes);
    for (int64_t row = 0; row < arguments_.batch; ++row) {
      const float* parameters = &parameters_[row * projected_];
      const float *B = parameters + rank, *C = B + N;
      const float* before = state.scan + (row * arguments_.d_inner + channel) * N;
      float* after = state.next_scan + (row * arguments_.d_inner + channel) * N;
      Vec raw = bias;
      for (int64_t j = 0; j < rank; ++j) raw += load(dt_proj + j * kLanes, kLanes) * parameters[j];
      const Vec dt = softplus(raw).value, u = load(&u_[row * arguments_.d_inner + channel], lanes), dtu = dt * u;
      Vec y = {};
      int i = 0;
      for (; i + 4 <= lanes; i += 4)
        recur<4>(rate + i * N, before + i * N, after + i * N, i, dt, dtu, B, C, y);
      for (; i < lanes; ++i) recur<1>(rate + i * N, before + i * N, after + i * N, i, dt, dtu, B, C, y);
      const Vec z = load(&uz_[(2 * row + 1) * arguments_.d_inner + channel], lanes);
      store(&y_[row * arguments_.d_inner + channel], (y + D * u) * z * sigmoid(z), lanes);
    }
  }

  // The recurrence of some neighbouring channels, the first of them lane `first`; their N states lie side by side.
  template <int Channels>
  void recur(const float* rate, const float* before, float* after, int first, Vec dt, Vec dtu, const float* B,
             const float* C, Vec& y) const {
    Vec total[Channels] = {};
    for (int64_t n = 0; n < arguments_.states; n += kLanes) {
      const int lanes = lanes_from(n, arguments_.states);
      const Vec b_n = load(B + n, lanes), c_n = load(C + n, lanes);
      Vec decay[Channels];
      for (int i = 0; i < Channels; ++i) decay[i] = load(rate + i * arguments_.states + n, lanes) * dt[first + i];
      exp2_all<Channels>(decay);
      for (int i = 0; i < Channels; ++i) {
        const Vec h = load(before + i * arguments_.states + n, lanes) * decay[i] + b_n * dtu[first + i];
        store(after + i * arguments_.states + n, h, lanes);
        total[i] += h * c_n;
      }
    }
    for (int i = 0; i < Channels; ++i) y[first + i] = sum(total[i]);
  }

  float* kept(const MambaStepBlock& block, int64_t channel) const {
    return block.kept + 2 * channel * (arguments_.width + arguments_.rank + arguments_.states);
  }

  const MambaStepArguments& arguments_;
  const int64_t projected_;
  std::vector<float> residual_, update_, normed_, uz_, u_, parameters_, y_;
};

template <class T>
void run(const MambaStepArguments& arguments) {
  MambaStep<T> step(arguments);
  // Below a million multiplications, threads would mostly wait for each other.
  const int64_t layer = 3 * arguments.d_model * arguments.d_inner;
  const int64_t products = arguments.batch * (arguments.layers * layer + arguments.d_model * arguments.vocabulary);
#pragma omp parallel num_threads(arguments.threads) if (arguments.threads > 1 && products > int64_t(1) << 20)
  step.run();
}

}  // namespace

extern "C" {
int mambabyte_mamba_step_arguments_size() { return sizeof(MambaStepArguments); }
int mambabyte_mamba_step_block_size() { return sizeof(MambaStepBlock); }
int mambabyte_mamba_step_state_size() { return sizeof(MambaStepState); }

void mambabyte_mamba_step(const MambaStepArguments* a) {
  if (a->storage == 2)
    run<int8_t>(*a);
  else if (a->storage == 1)
    run<BFloat16>(*a);
  else
    run<float>(*a);
}
}
}  // namespace mambabyte
