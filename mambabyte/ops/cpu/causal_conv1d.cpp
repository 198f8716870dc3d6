// Depthwise causal convolution with SiLU on a CPU, forward and backward:
//
//   out[t] = silu(bias + sum_j weight[j] x[t - j])
//
// Rows before t = 0 come from the initial state; rows before a document's start count as zero.
//
// Channels are the vector lanes. Time runs in chunks of kChunk rows, and inside a chunk one block of channels at a
// time, with the taps, the weights and their gradients in registers, so each input is loaded once.
#include <vector>

#include "kernel.h"

namespace mambabyte {

constexpr int kChunk = 32;
constexpr int kBlocksPerTask = 8;
constexpr int kChannelsPerTask = kBlocksPerTask * kLanes;

struct CausalConv1dArguments {
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
  void* grad_x;          // (B, L, D), rows grad_x_stride apart
  float* grad_weight;    // (B, W, D)
  float* grad_bias;      // (B, D)
  float* grad_state;     // (B, W - 1, D)
  int64_t grad_x_stride;
};

namespace {

template <class T, int W>
class CausalConv1d {
 public:
  CausalConv1d(const CausalConv1dArguments& arguments, int64_t task)
      : arguments_(arguments), batch_(task / tasks_per_row(arguments)),
        first_(task % tasks_per_row(arguments) * kChannelsPerTask),
        last_(std::min(arguments.channels, first_ + kChannelsPerTask)), x_(static_cast<const T*>(arguments.x)) {}

  static int64_t tasks_per_row(const CausalConv1dArguments& arguments) {
    return ceil_divide(arguments.channels, kChannelsPerTask);
  }

  void forward() {
    for (int64_t begin = 0; begin < arguments_.length; begin += kChunk) {
      const bool resets = find_resets(begin);
      for (int64_t channel = first_; channel < last_; channel += kLanes)
        resets ? forward_block<true>(begin, channel) : forward_block<false>(begin, channel);
    }
  }

  void backward() {
    std::vector<Gradients> gradients(kBlocksPerTask);
    for (int64_t begin = (arguments_.length - 1) / kChunk * kChunk; begin >= 0; begin -= kChunk) {
      const bool resets = find_resets(begin);
      for (int64_t channel = first_; channel < last_; channel += kLanes) {
        Gradients& gradient = gradients[(channel - first_) / kLanes];
        resets ? backward_block<true>(begin, channel, gradient) : backward_block<false>(begin, channel, gradient);
      }
    }
    for (int64_t channel = first_; channel < last_; channel += kLanes) {
      const Gradients& gradient = gradients[(channel - first_) / kLanes];
      float* grad_weight = arguments_.grad_weight + batch_ * W * arguments_.channels + channel;
      for (int j = 0; j < W; ++j) store(grad_weight + j * arguments_.channels, gradient.weight[j], lanes(channel));
      store(arguments_.grad_bias + batch_ * arguments_.channels + channel, gradient.bias, lanes(channel));
      float* grad_state = arguments_.grad_state + batch_ * (W - 1) * arguments_.channels + channel;
      for (int j = 0; j < W - 1; ++j)
        store(grad_state + (W - 2 - j) * arguments_.channels, gradient.rows[j], lanes(channel));
    }
  }

 private:
  struct Gradients {
    Vec weight[W] = {}, bias = {};
    Vec rows[W] = {};  // of the W - 1 rows before the chunk, nearest first, without their own chunk's part
  };

  int lanes(int64_t channel) const { return lanes_from(channel, arguments_.channels); }
  int steps(int64_t begin) const { return int(std::min<int64_t>(kChunk, arguments_.length - begin)); }

  // Fills keep_[t][j], 0 where row t - j belongs to an earlier document; false if the chunk has no such row.
  bool find_resets(int64_t begin) {
    if (!arguments_.document_start) return false;
    const uint8_t* start = arguments_.document_start + batch_ * arguments_.length;
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

  Vec row(int64_t t, int64_t channel) const {
    if (t < 0)
      return load(arguments_.state + (batch_ * (W - 1) + W - 1 + t) * arguments_.channels + channel, lanes(channel));
    return load(x_ + batch_ * arguments_.x_batch_stride + t * arguments_.x_time_stride + channel, lanes(channel));
  }

  void load_weight(int64_t channel, Vec* weight) const {
    for (int j = 0; j < W; ++j) weight[j] = load(arguments_.weight + j * arguments_.channels + channel, lanes(channel));
  }

  template <bool Resets>
  void forward_block(int64_t begin, int64_t channel) const {
    const int lanes = this->lanes(channel);
    const Vec bias = load(arguments_.bias + channel, lanes);
    Vec weight[W], taps[W];
    load_weight(channel, weight);
    for (int j = 1; j < W; ++j) taps[j] = row(begin - j, channel);
    T* out = static_cast<T*>(arguments_.out) + (batch_ * arguments_.length + begin) * arguments_.channels + channel;
    for (int t = 0; t < steps(begin); ++t) {
      taps[0] = row(begin + t, channel);
      Vec pre = bias;
      for (int j = 0; j < W; ++j) pre += weight[j] * (Resets ? taps[j] * keep_[t][j] : taps[j]);
      store(out + t * arguments_.channels, pre * sigmoid(pre), lanes);
      for (int j = W - 1; j > 0; --j) taps[j] = taps[j - 1];
    }
  }

  template <bool Resets>
  void backward_block(int64_t begin, int64_t channel, Gradients& gradient) const {
    const int lanes = this->lanes(channel), steps = this->steps(begin);
    const int64_t offset = (batch_ * arguments_.length + begin) * arguments_.channels + channel;
    const T* grad_out = static_cast<const T*>(arguments_.grad_out) + offset;
    const int64_t row_of_x = batch_ * arguments_.length + begin;
    T* grad_x = static_cast<T*>(arguments_.grad_x) + row_of_x * arguments_.grad_x_stride + channel;
    const Vec bias = load(arguments_.bias + channel, lanes);
    Vec weight[W], taps[W], rows[W];  // rows[j]: gradient of row t - j so far
    load_weight(channel, weight);
    Gradients sums = gradient;
    for (int j = 0; j < W; ++j) rows[j] = sums.rows[j];
    for (int j = 0; j < W - 1; ++j) taps[j + 1] = row(begin + steps - 1 - j, channel);
    for (int t = steps - 1; t >= 0; --t) {
      for (int j = 0; j < W - 1; ++j) taps[j] = taps[j + 1];
      taps[W - 1] = row(begin + t - (W - 1), channel);
      Vec pre = bias;
      for (int j = 0; j < W; ++j) pre += weight[j] * (Resets ? taps[j] * keep_[t][j] : taps[j]);
      const Vec gate = sigmoid(pre);
      const Vec grad = load(grad_out + t * arguments_.channels, lanes) * gate * (1.0f + pre * (1.0f - gate));
      sums.bias += grad;
      for (int j = 0; j < W; ++j) {
        const Vec kept = Resets ? grad * keep_[t][j] : grad;
        sums.weight[j] += kept * taps[j];
        rows[j] += kept * weight[j];
      }
      store(grad_x + t * arguments_.grad_x_stride, rows[0], lanes);
      for (int j = 0; j < W - 1; ++j) rows[j] = rows[j + 1];
      rows[W - 1] = Vec{};
    }
    for (int j = 0; j < W; ++j) sums.rows[j] = rows[j];
    gradient = sums;
  }

  const CausalConv1dArguments& arguments_;
  const int64_t batch_, first_, last_;
  const T* x_;
  float keep_[kChunk][W];
};

template <class T, int W>
void run(const CausalConv1dArguments& arguments, bool backward) {
  const int64_t tasks = arguments.batch * CausalConv1d<T, W>::tasks_per_row(arguments);
  run_tasks(tasks, arguments.threads, [&](int64_t task) {
    CausalConv1d<T, W> convolution(arguments, task);
    backward ? convolution.backward() : convolution.forward();
  });
}

void dispatch(const CausalConv1dArguments& arguments, bool backward) {
  with_activation_type(arguments.bfloat16, [&](auto activation) {
    using T = decltype(activation);
    if (arguments.width == 2) run<T, 2>(arguments, backward);
    if (arguments.width == 3) run<T, 3>(arguments, backward);
    if (arguments.width == 4) run<T, 4>(arguments, backward);
  });
}

}  // namespace

extern "C" {
int mambabyte_causal_conv1d_arguments_size() { return sizeof(CausalConv1dArguments); }
void mambabyte_causal_conv1d_forward(const CausalConv1dArguments* a) { dispatch(*a, false); }
void mambabyte_causal_conv1d_backward(const CausalConv1dArguments* a) { dispatch(*a, true); }
}
}  // namespace mambabyte
