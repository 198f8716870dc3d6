// One byte through a whole stack of Mamba blocks (arXiv 2312.00752, section 3.4) on a CPU: what generation repeats.
//
//   x = residual + update,  n = norm(x),  (u, z) = W_in n,  u = silu(conv(u)),  (s, B, C) = W_x u
//   dt = softplus(W_dt s + bias),  h = exp(dt A) h + dt B u,  y = (<C, h> + D u) silu(z),  update = W_out y
//
// At this size the calls and not the arithmetic cost time, so that there is one call for all layers. Each number is
// computed by one thread in an order that depends on nothing but the model's shape: a row's result is the same bit
// for bit in any batch and at any number of threads.
#include <algorithm>
#include <vector>

#include "vector.h"

namespace mambabyte {

extern "C" struct MambaStepBlock {
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

extern "C" struct MambaStepArguments {
  int64_t batch, layers, d_model, d_inner, states, width, rank, vocabulary;
  int32_t threads, rms;
  float epsilon;
  const int64_t* bytes;                      // (B)
  const float *embedding, *head;             // (V, d)
  const float *norm_weight, *norm_bias;      // of the final norm
  const MambaStepBlock* blocks;
  float* logits;                             // (B, V)
};

namespace {

constexpr int64_t kOutputs = 4, kRows = 4;  // of a product at a time: sixteen sums in registers

class MambaStep {
 public:
  explicit MambaStep(const MambaStepArguments& a)
      : a_(a), projected_(a.rank + 2 * a.states), residual_(a.batch * a.d_model), update_(a.batch * a.d_model),
        normed_(a.batch * a.d_model), u_(a.batch * a.d_inner), z_(a.batch * a.d_inner),
        parameters_(a.batch * projected_), y_(a.batch * a.d_inner) {}

  // Called by every thread of a team; each loop over tasks ends with a barrier.
  void run() {
    FlushDenormals guard;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < a_.batch; ++b)
      std::memcpy(&residual_[b * a_.d_model], a_.embedding + a_.bytes[b] * a_.d_model, a_.d_model * sizeof(float));
    for (int64_t layer = 0; layer < a_.layers; ++layer) {
      const MambaStepBlock& block = a_.blocks[layer];
      normalise(block.norm_weight, block.norm_bias, layer > 0);
#pragma omp for schedule(static)
      for (int64_t c = 0; c < a_.d_inner; c += kLanes) {
        const int64_t end = std::min(c + kLanes, a_.d_inner);
        product(block.in_proj, a_.d_model, normed_, u_, a_.d_inner, c, end);
        product(block.in_proj + a_.d_inner * a_.d_model, a_.d_model, normed_, z_, a_.d_inner, c, end);
        convolve(block, c, int(end - c));
      }
#pragma omp for schedule(static)
      for (int64_t o = 0; o < projected_; o += kOutputs)
        product(block.x_proj, a_.d_inner, u_, parameters_, projected_, o, std::min(o + kOutputs, projected_));
#pragma omp for schedule(static)
      for (int64_t c = 0; c < a_.d_inner; c += kLanes)
        scan(block, c, int(std::min<int64_t>(kLanes, a_.d_inner - c)));
#pragma omp for schedule(static)
      for (int64_t o = 0; o < a_.d_model; o += kLanes)
        product(block.out_proj, a_.d_inner, y_, update_, a_.d_model, o, std::min(o + kLanes, a_.d_model));
    }
    normalise(a_.norm_weight, a_.norm_bias, a_.layers > 0);
#pragma omp for schedule(static)
    for (int64_t o = 0; o < a_.vocabulary; o += kLanes)
      product(a_.head, a_.d_model, normed_, a_.logits, a_.vocabulary, o, std::min(o + kLanes, a_.vocabulary));
  }

 private:
  // out[b, first:last] = weight[first:last] x[b] for every row b; weight (.., columns), out (B, width).
  template <class Out>
  void product(const float* weight, int64_t columns, const std::vector<float>& x, Out& out, int64_t width, int64_t first,
               int64_t last) const {
    for (int64_t o = first; o < last; o += kOutputs)
      for (int64_t b = 0; b < a_.batch; b += kRows) {
        const int outputs = int(std::min(kOutputs, last - o)), rows = int(std::min(kRows, a_.batch - b));
        float sums[kOutputs * kRows];
        const float *w = weight + o * columns, *input = x.data() + b * columns;
        if (outputs == kOutputs && rows == kRows)
          dot<kOutputs, kRows>(w, input, columns, sums);
        else if (outputs == kOutputs && rows == 1)
          dot<kOutputs, 1>(w, input, columns, sums);
        else
          for (int i = 0; i < outputs; ++i)
            for (int r = 0; r < rows; ++r) dot<1, 1>(w + i * columns, input + r * columns, columns, sums + i * rows + r);
        for (int i = 0; i < outputs; ++i)
          for (int r = 0; r < rows; ++r) out[(b + r) * width + o + i] = sums[i * rows + r];
      }
  }

  template <int O, int R>
  static void dot(const float* weight, const float* x, int64_t columns, float* sums) {
    Vec total[O][R] = {};
    for (int64_t k = 0; k < columns; k += kLanes) {
      const int lanes = int(std::min<int64_t>(kLanes, columns - k));
      Vec row[R];
      for (int r = 0; r < R; ++r) row[r] = load(x + r * columns + k, lanes);
      for (int i = 0; i < O; ++i) {
        const Vec w = load(weight + i * columns + k, lanes);
        for (int r = 0; r < R; ++r) total[i][r] += w * row[r];
      }
    }
    for (int i = 0; i < O; ++i)
      for (int r = 0; r < R; ++r) sums[i * R + r] = sum(total[i][r]);
  }

  // residual += update; normed = norm(residual)
  void normalise(const float* weight, const float* bias, bool updated) {
    const int64_t width = a_.d_model;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < a_.batch; ++b) {
      float *x = &residual_[b * width], *out = &normed_[b * width];
      Vec total = {}, squares = {};
      for (int64_t k = 0; k < width; k += kLanes) {
        const int lanes = int(std::min<int64_t>(kLanes, width - k));
        Vec v = load(x + k, lanes);
        if (updated) v += load(&update_[b * width + k], lanes);
        store(x + k, v, lanes);
        total += v;
      }
      const float mean = a_.rms ? 0.0f : sum(total) / width;
      for (int64_t k = 0; k < width; ++k) out[k] = x[k] - mean;
      for (int64_t k = 0; k < width; k += kLanes) {
        const Vec v = load(out + k, int(std::min<int64_t>(kLanes, width - k)));
        squares += v * v;
      }
      const float scale = 1.0f / std::sqrt(sum(squares) / width + a_.epsilon);
      for (int64_t k = 0; k < width; ++k) out[k] = out[k] * scale * weight[k] + (bias ? bias[k] : 0.0f);
    }
  }

  // Columns of a (.., width) matrix, of which up to 16 rows become the lanes.
  static std::vector<Vec> columns(const float* rows, int64_t width, int lanes) {
    std::vector<Vec> result(width);
    for (int i = 0; i < lanes; ++i)
      for (int64_t j = 0; j < width; ++j) result[j][i] = rows[i * width + j];
    return result;
  }

  // u = silu(conv(u)) of up to 16 channels, and the inputs that the next step looks back on
  void convolve(const MambaStepBlock& block, int64_t c, int lanes) {
    const int64_t history = a_.width - 1;
    const std::vector<Vec> taps = columns(block.conv_weight + c * a_.width, a_.width, lanes);
    const Vec bias = load(block.conv_bias + c, lanes);
    for (int64_t b = 0; b < a_.batch; ++b) {
      const float* before = block.conv_state + b * history * a_.d_inner + c;
      float* after = block.next_conv_state + b * history * a_.d_inner + c;
      float* u = &u_[b * a_.d_inner + c];
      const Vec now = load(u, lanes);
      Vec total = bias;
      for (int64_t j = 0; j <= history; ++j) {
        const Vec input = j < history ? load(before + j * a_.d_inner, lanes) : now;
        total += taps[j] * input;
        if (j > 0) store(after + (j - 1) * a_.d_inner, input, lanes);
      }
      store(u, total * sigmoid(total), lanes);
    }
  }

  // Step size, recurrence, skip and gate of up to 16 channels.
  void scan(const MambaStepBlock& block, int64_t c, int lanes) {
    const int64_t N = a_.states;
    const std::vector<Vec> dt_proj = columns(block.dt_proj + c * a_.rank, a_.rank, lanes);
    const Vec bias = load(block.dt_bias + c, lanes), D = load(block.D + c, lanes);
    std::vector<float> rate(lanes * N);  // A log2(e)
    for (int64_t k = 0; k < lanes * N; k += kLanes) {  // the channels' states lie end to end
      const int left = int(std::min<int64_t>(kLanes, lanes * N - k));
      store(&rate[k], exp2(load(block.A_log + c * N + k, left) * kLog2E) * -kLog2E, left);
    }
    for (int64_t b = 0; b < a_.batch; ++b) {
      const float* parameters = &parameters_[b * projected_];
      const float *B = parameters + a_.rank, *C = B + N;
      const float* before = block.scan_state + (b * a_.d_inner + c) * N;
      float* after = block.next_scan_state + (b * a_.d_inner + c) * N;
      Vec raw = bias;
      for (int64_t j = 0; j < a_.rank; ++j) raw += dt_proj[j] * parameters[j];
      const Vec dt = softplus(raw).value, u = load(&u_[b * a_.d_inner + c], lanes), dtu = dt * u;
      Vec y = {};
      int i = 0;
      for (; i + 4 <= lanes; i += 4)
        recur<4>(&rate[i * N], before + i * N, after + i * N, i, dt, dtu, B, C, y);
      for (; i < lanes; ++i) recur<1>(&rate[i * N], before + i * N, after + i * N, i, dt, dtu, B, C, y);
      const Vec z = load(&z_[b * a_.d_inner + c], lanes);
      store(&y_[b * a_.d_inner + c], (y + D * u) * z * sigmoid(z), lanes);
    }
  }

  // The recurrence of K neighbouring channels, whose N states lie side by side, the first being lane `first`.
  template <int K>
  void recur(const float* rate, const float* before, float* after, int first, Vec dt, Vec dtu, const float* B,
             const float* C, Vec& y) const {
    Vec total[K] = {};
    for (int64_t n = 0; n < a_.states; n += kLanes) {
      const int lanes = int(std::min<int64_t>(kLanes, a_.states - n));
      const Vec b_n = load(B + n, lanes), c_n = load(C + n, lanes);
      Vec decay[K];
      for (int i = 0; i < K; ++i) decay[i] = load(rate + i * a_.states + n, lanes) * dt[first + i];
      exp2_all<K>(decay);
      for (int i = 0; i < K; ++i) {
        const Vec h = load(before + i * a_.states + n, lanes) * decay[i] + b_n * dtu[first + i];
        store(after + i * a_.states + n, h, lanes);
        total[i] += h * c_n;
      }
    }
    for (int i = 0; i < K; ++i) y[first + i] = sum(total[i]);
  }

  const MambaStepArguments& a_;
  const int64_t projected_;
  std::vector<float> residual_, update_, normed_, u_, z_, parameters_, y_;
};

}  // namespace
}  // namespace mambabyte

// Returns 0, or 1 where a byte is outside the vocabulary.
extern "C" int mambabyte_mamba_step(const mambabyte::MambaStepArguments* a) {
  for (int64_t b = 0; b < a->batch; ++b)
    if (a->bytes[b] < 0 || a->bytes[b] >= a->vocabulary) return 1;
  mambabyte::MambaStep step(*a);
  // Below some millions of multiplications the threads would mostly wait for each other.
  const int64_t products = a->batch * (a->layers * 3 * a->d_model * a->d_inner + a->d_model * a->vocabulary);
#pragma omp parallel num_threads(a->threads) if (a->threads > 1 && products > int64_t(1) << 22)
  step.run();
  return 0;
}
