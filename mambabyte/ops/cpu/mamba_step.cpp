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
#include <vector>

#include "kernel.h"

namespace mambabyte {

struct MambaStepBlock {
  const float *norm_weight, *norm_bias;  // (d); the bias may be null
  const float* in_proj;                  // (2D, d)
  const float *conv_weight, *conv_bias;  // (D, W), (D)
  const float* x_proj;                   // (R + 2N, D)
  const float *dt_proj, *dt_bias;        // (D, R), (D)
  const float *A_log, *D;                // (D, N), (D)
  const float* out_proj;                 // (d, D)
  const float *conv_state, *scan_state;  // (B, W-1, D), (B, D, N)
  float *next_conv_state, *next_scan_state;
};

struct MambaStepArguments {
  int64_t batch, layers, d_model, d_inner, states, width, rank, vocabulary;
  int32_t threads, rms;
  float epsilon;
  const float* x;                        // (B, d), the embedded bytes
  const float* head;                     // (V, d)
  const float *norm_weight, *norm_bias;  // of the final norm
  const MambaStepBlock* blocks;
  float* logits;  // (B, V)
};

namespace {

constexpr int64_t kOutputs = 4, kRows = 4;  // of a product at a time: their sixteen sums fit in registers

class MambaStep {
 public:
  explicit MambaStep(const MambaStepArguments& arguments)
      : arguments_(arguments), projected_(arguments.rank + 2 * arguments.states),
        residual_(arguments.x, arguments.x + arguments.batch * arguments.d_model), update_(arguments.batch * arguments.d_model),
        normed_(arguments.batch * arguments.d_model), u_(arguments.batch * arguments.d_inner),
        z_(arguments.batch * arguments.d_inner), parameters_(arguments.batch * projected_),
        y_(arguments.batch * arguments.d_inner) {}

  // Every thread of a parallel region calls this.
  void run() {
    FlushDenormals guard;
    const int64_t d_model = arguments_.d_model, d_inner = arguments_.d_inner;
    for (int64_t layer = 0; layer < arguments_.layers; ++layer) {
      const MambaStepBlock& block = arguments_.blocks[layer];
      normalise(block.norm_weight, block.norm_bias, layer > 0);
      share_blocks(d_inner, kLanes, [&](int64_t first, int64_t last) {
        product(block.in_proj, d_model, normed_, u_, d_inner, first, last);
        product(block.in_proj + d_inner * d_model, d_model, normed_, z_, d_inner, first, last);
        convolve(block, first, int(last - first));
      });
      share_blocks(projected_, kOutputs, [&](int64_t first, int64_t last) {
        product(block.x_proj, d_inner, u_, parameters_, projected_, first, last);
      });
      share_blocks(d_inner, kLanes, [&](int64_t first, int64_t last) { scan(block, first, int(last - first)); });
      share_blocks(d_model, kLanes, [&](int64_t first, int64_t last) {
        product(block.out_proj, d_inner, y_, update_, d_model, first, last);
      });
    }
    normalise(arguments_.norm_weight, arguments_.norm_bias, arguments_.layers > 0);
    share_blocks(arguments_.vocabulary, kLanes, [&](int64_t first, int64_t last) {
      product(arguments_.head, d_model, normed_, arguments_.logits, arguments_.vocabulary, first, last);
    });
  }

 private:
  // out[row, first:last] = weight[first:last] x[row] for every row; weight (.., columns), out (B, width).
  // Not inlined, as it is large and has five callers.
  template <class Out>
  [[gnu::noinline]] void product(const float* weight, int64_t columns, const std::vector<float>& x, Out& out,
                                 int64_t width, int64_t first, int64_t last) const {
    for (int64_t output = first; output < last; output += kOutputs)
      for (int64_t row = 0; row < arguments_.batch; row += kRows) {
        const int outputs = int(std::min(kOutputs, last - output)), rows = int(std::min(kRows, arguments_.batch - row));
        float sums[kOutputs * kRows];
        const float *w = weight + output * columns, *input = x.data() + row * columns;
        if (outputs == kOutputs && rows == kRows)
          dot<kOutputs, kRows>(w, input, columns, sums);
        else if (outputs == kOutputs && rows == 1)
          dot<kOutputs, 1>(w, input, columns, sums);
        else
          for (int i = 0; i < outputs; ++i)
            for (int j = 0; j < rows; ++j)
              dot<1, 1>(w + i * columns, input + j * columns, columns, sums + i * rows + j);
        for (int i = 0; i < outputs; ++i)
          for (int j = 0; j < rows; ++j) out[(row + j) * width + output + i] = sums[i * rows + j];
      }
  }

  template <int Outputs, int Rows>
  static void dot(const float* weight, const float* x, int64_t columns, float* sums) {
    Vec total[Outputs][Rows] = {};
    for (int64_t k = 0; k < columns; k += kLanes) {
      const int lanes = lanes_from(k, columns);
      Vec row[Rows];
      for (int j = 0; j < Rows; ++j) row[j] = load(x + j * columns + k, lanes);
      for (int i = 0; i < Outputs; ++i) {
        const Vec w = load(weight + i * columns + k, lanes);
        for (int j = 0; j < Rows; ++j) total[i][j] += w * row[j];
      }
    }
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

  // Columns of a (.., width) matrix, with up to 16 of its rows as the lanes.
  static std::vector<Vec> columns(const float* rows, int64_t width, int lanes) {
    std::vector<Vec> result(width);
    for (int i = 0; i < lanes; ++i)
      for (int64_t j = 0; j < width; ++j) result[j][i] = rows[i * width + j];
    return result;
  }

  // u = silu(conv(u)) of up to 16 channels, and the inputs that the next step needs
  void convolve(const MambaStepBlock& block, int64_t channel, int lanes) {
    const int64_t history = arguments_.width - 1;
    const std::vector<Vec> taps = columns(block.conv_weight + channel * arguments_.width, arguments_.width, lanes);
    const Vec bias = load(block.conv_bias + channel, lanes);
    for (int64_t row = 0; row < arguments_.batch; ++row) {
      const float* before = block.conv_state + row * history * arguments_.d_inner + channel;
      float* after = block.next_conv_state + row * history * arguments_.d_inner + channel;
      float* u = &u_[row * arguments_.d_inner + channel];
      const Vec now = load(u, lanes);
      Vec total = bias;
      for (int64_t j = 0; j <= history; ++j) {
        const Vec input = j < history ? load(before + j * arguments_.d_inner, lanes) : now;
        total += taps[j] * input;
        if (j > 0) store(after + (j - 1) * arguments_.d_inner, input, lanes);
      }
      store(u, total * sigmoid(total), lanes);
    }
  }

  // Step size, recurrence, skip and gate of up to 16 channels.
  void scan(const MambaStepBlock& block, int64_t channel, int lanes) {
    const int64_t N = arguments_.states;
    const std::vector<Vec> dt_proj = columns(block.dt_proj + channel * arguments_.rank, arguments_.rank, lanes);
    const Vec bias = load(block.dt_bias + channel, lanes), D = load(block.D + channel, lanes);
    std::vector<float> rate(lanes * N);  // A log2(e)
    for (int64_t k = 0; k < lanes * N; k += kLanes) {  // the channels' states lie end to end
      const int left = lanes_from(k, lanes * N);
      store(&rate[k], exp2(load(block.A_log + channel * N + k, left) * kLog2E) * -kLog2E, left);
    }
    for (int64_t row = 0; row < arguments_.batch; ++row) {
      const float* parameters = &parameters_[row * projected_];
      const float *B = parameters + arguments_.rank, *C = B + N;
      const float* before = block.scan_state + (row * arguments_.d_inner + channel) * N;
      float* after = block.next_scan_state + (row * arguments_.d_inner + channel) * N;
      Vec raw = bias;
      for (int64_t j = 0; j < arguments_.rank; ++j) raw += dt_proj[j] * parameters[j];
      const Vec dt = softplus(raw).value, u = load(&u_[row * arguments_.d_inner + channel], lanes), dtu = dt * u;
      Vec y = {};
      int i = 0;
      for (; i + 4 <= lanes; i += 4)
        recur<4>(&rate[i * N], before + i * N, after + i * N, i, dt, dtu, B, C, y);
      for (; i < lanes; ++i) recur<1>(&rate[i * N], before + i * N, after + i * N, i, dt, dtu, B, C, y);
      const Vec z = load(&z_[row * arguments_.d_inner + channel], lanes);
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

  const MambaStepArguments& arguments_;
  const int64_t projected_;
  std::vector<float> residual_, update_, normed_, u_, z_, parameters_, y_;
};

}  // namespace

extern "C" {
int mambabyte_mamba_step_arguments_size() { return sizeof(MambaStepArguments); }
int mambabyte_mamba_step_block_size() { return sizeof(MambaStepBlock); }

void mambabyte_mamba_step(const MambaStepArguments* a) {
  MambaStep step(*a);
  // Below a few million multiplications, threads would mostly wait for each other.
  const int64_t products = a->batch * (a->layers * 3 * a->d_model * a->d_inner + a->d_model * a->vocabulary);
#pragma omp parallel num_threads(a->threads) if (a->threads > 1 && products > int64_t(1) << 22)
  step.run();
}
}
}  // namespace mambabyte
