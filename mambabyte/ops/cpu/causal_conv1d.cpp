// Depthwise causal convolution with SiLU on a CPU, forward and backward: out[t] = silu(bias + sum_j w[j] x[t - j]).
// Rows before t = 0 come from the carried state; rows before a document's start count as zero.
//
// Channels are the vector lanes. Time is walked in chunks of kChunk rows, and inside a chunk one block of channels
// at a time, with the taps, the weights and their gradients in registers: each input is loaded once.
#include <algorithm>
#include <vector>

#include "vector.h"

namespace mambabyte {
namespace {

constexpr int kChunk = 32;
constexpr int kBlocksPerTask = 8;
constexpr int kChannelsPerTask = kBlocksPerTask * kLanes;

}  // namespace

extern "C" struct CausalConv1dArguments {
  int64_t batch, length, channels, width;
  int32_t threads, bfloat16;
  const void* x;  // row t of batch b: x + b * x_batch_stride + t * x_time_stride, channels contiguous
  int64_t x_batch_stride, x_time_stride;
  const float* weight;            // (W, D), weight[j] multiplies x[t - j]
  const float* bias;              // (D)
  const float* state;             // (B, W - 1, D): the rows before t = 0, oldest first
  const uint8_t* document_start;  // (B, L) or null
  void* out;                      // (B, L, D)
  // backward only
  const void* grad_out;  // (B, L, D)
  void* grad_x;          // (B, L, D)
  float* grad_weight;    // (B, W, D)
  float* grad_bias;      // (B, D)
  float* grad_state;     // (B, W - 1, D)
};

namespace {

template <class T, int W>
class CausalConv1d {
 public:
  CausalConv1d(const CausalConv1dArguments& a, int64_t task)
      : a_(a), b_(task / tasks_per_row(a)), first_(task % tasks_per_row(a) * kChannelsPerTask),
        last_(std::min(a.channels, first_ + kChannelsPerTask)), x_(static_cast<const T*>(a.x)) {}

  static int64_t tasks_per_row(const CausalConv1dArguments& a) {
    return (a.channels + kChannelsPerTask - 1) / kChannelsPerTask;
  }

  void forward() {
    for (int64_t begin = 0; begin < a_.length; begin += kChunk) {
      const bool resets = find_resets(begin);
      for (int64_t c = first_; c < last_; c += kLanes)
        resets ? forward_block<true>(begin, c) : forward_block<false>(begin, c);
    }
  }

  void backward() {
    std::vector<Gradients> gradients(kBlocksPerTask);
    for (int64_t begin = (a_.length - 1) / kChunk * kChunk; begin >= 0; begin -= kChunk) {
      const bool resets = find_resets(begin);
      for (int64_t c = first_; c < last_; c += kLanes) {
        Gradients& gradient = gradients[(c - first_) / kLanes];
        resets ? backward_block<true>(begin, c, gradient) : backward_block<false>(begin, c, gradient);
      }
    }
    for (int64_t c = first_; c < last_; c += kLanes) {
      const Gradients& gradient = gradients[(c - first_) / kLanes];
      for (int j = 0; j < W; ++j) store(a_.grad_weight + (b_ * W + j) * a_.channels + c, gradient.weight[j], lanes(c));
      store(a_.grad_bias + b_ * a_.channels + c, gradient.bias, lanes(c));
      for (int j = 0; j < W - 1; ++j)
        store(a_.grad_state + (b_ * (W - 1) + W - 2 - j) * a_.channels + c, gradient.rows[j], lanes(c));
    }
  }

 private:
  struct Gradients {
    Vec weight[W] = {}, bias = {};
    Vec rows[W] = {};  // of the W - 1 rows before the chunk, nearest first: they still lack their own chunk's share
  };

  int lanes(int64_t c) const { return int(std::min<int64_t>(kLanes, a_.channels - c)); }
  int steps(int64_t begin) const { return int(std::min<int64_t>(kChunk, a_.length - begin)); }

  // Fills keep_[t][j], 0 where row t - j belongs to an earlier document; false if the chunk has no such row.
  bool find_resets(int64_t begin) {
    if (!a_.document_start) return false;
    const uint8_t* start = a_.document_start + b_ * a_.length;
    bool found = false;
    for (int t = 0; t < steps(begin); ++t) {
      float keep = 1.0f;
      for (int j = 0; j < W; ++j) {
        keep_[t][j] = keep;
        if (begin + t - j >= 0 && start[begin + t - j]) keep = 0.0f, found = true;
      }
    }
    return found;
  }

  Vec row(int64_t t, int64_t c) const {
    if (t < 0) return load(a_.state + (b_ * (W - 1) + W - 1 + t) * a_.channels + c, lanes(c));
    return load(x_ + b_ * a_.x_batch_stride + t * a_.x_time_stride + c, lanes(c));
  }

  void load_weight(int64_t c, Vec* weight) const {
    for (int j = 0; j < W; ++j) weight[j] = load(a_.weight + j * a_.channels + c, lanes(c));
  }

  template <bool Resets>
  void forward_block(int64_t begin, int64_t c) const {
    const int lanes = this->lanes(c);
    const Vec bias = load(a_.bias + c, lanes);
    Vec weight[W], taps[W];
    load_weight(c, weight);
    for (int j = 1; j < W; ++j) taps[j] = row(begin - j, c);
    T* out = static_cast<T*>(a_.out) + (b_ * a_.length + begin) * a_.channels + c;
    for (int t = 0; t < steps(begin); ++t) {
      taps[0] = row(begin + t, c);
      Vec pre = bias;
      for (int j = 0; j < W; ++j) pre += weight[j] * (Resets ? taps[j] * keep_[t][j] : taps[j]);
      store(out + t * a_.channels, pre * sigmoid(pre), lanes);
      for (int j = W - 1; j > 0; --j) taps[j] = taps[j - 1];
    }
  }

  template <bool Resets>
  void backward_block(int64_t begin, int64_t c, Gradients& gradient) const {
    const int lanes = this->lanes(c), steps = this->steps(begin);
    const int64_t offset = (b_ * a_.length + begin) * a_.channels + c;
    const T* grad_out = static_cast<const T*>(a_.grad_out) + offset;
    T* grad_x = static_cast<T*>(a_.grad_x) + offset;
    const Vec bias = load(a_.bias + c, lanes);
    Vec weight[W], taps[W], rows[W];  // rows[j]: gradient of row t - j so far
    load_weight(c, weight);
    Gradients sums = gradient;
    for (int j = 0; j < W; ++j) rows[j] = sums.rows[j];
    for (int j = 0; j < W - 1; ++j) taps[j + 1] = row(begin + steps - 1 - j, c);
    for (int t = steps - 1; t >= 0; --t) {
      for (int j = 0; j < W - 1; ++j) taps[j] = taps[j + 1];
      taps[W - 1] = row(begin + t - (W - 1), c);
      Vec pre = bias;
      for (int j = 0; j < W; ++j) pre += weight[j] * (Resets ? taps[j] * keep_[t][j] : taps[j]);
      const Vec gate = sigmoid(pre);
      const Vec grad = load(grad_out + t * a_.channels, lanes) * gate * (1.0f + pre * (1.0f - gate));
      sums.bias += grad;
      for (int j = 0; j < W; ++j) {
        const Vec kept = Resets ? grad * keep_[t][j] : grad;
        sums.weight[j] += kept * taps[j];
        rows[j] += kept * weight[j];
      }
      store(grad_x + t * a_.channels, rows[0], lanes);
      for (int j = 0; j < W - 1; ++j) rows[j] = rows[j + 1];
      rows[W - 1] = Vec{};
    }
    for (int j = 0; j < W; ++j) sums.rows[j] = rows[j];
    gradient = sums;
  }

  const CausalConv1dArguments& a_;
  const int64_t b_, first_, last_;
  const T* x_;
  float keep_[kChunk][W];
};

template <class T, int W>
void run_all(const CausalConv1dArguments& a, bool backward) {
  const int64_t tasks = a.batch * CausalConv1d<T, W>::tasks_per_row(a);
#pragma omp parallel for schedule(static) num_threads(a.threads) if (a.threads > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    FlushDenormals guard;
    CausalConv1d<T, W> conv(a, task);
    backward ? conv.backward() : conv.forward();
  }
}

template <class T>
void dispatch_width(const CausalConv1dArguments& a, bool backward) {
  if (a.width == 2) run_all<T, 2>(a, backward);
  if (a.width == 3) run_all<T, 3>(a, backward);
  if (a.width == 4) run_all<T, 4>(a, backward);
}

void dispatch(const CausalConv1dArguments& a, bool backward) {
  if (a.bfloat16)
    dispatch_width<BFloat16>(a, backward);
  else
    dispatch_width<float>(a, backward);
}

}  // namespace
}  // namespace mambabyte

extern "C" {
void mambabyte_causal_conv1d_forward(const mambabyte::CausalConv1dArguments* a) { mambabyte::dispatch(*a, false); }
void mambabyte_causal_conv1d_backward(const mambabyte::CausalConv1dArguments* a) { mambabyte::dispatch(*a, true); }
}
