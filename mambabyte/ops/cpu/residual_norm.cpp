// The residual stream's addition and the norm after it in one pass over memory, forward and backward:
//   x = residual + update,   out = (x - mean) / sqrt(var + epsilon) * weight + bias
// with mean = 0 and var = mean(x^2) for the RMS norm. Rows are split over tasks; each task sums its own share of
// the gradients of weight and bias, so that results do not depend on the order in which threads run.
#include <algorithm>
#include <vector>

#include "vector.h"

namespace mambabyte {

extern "C" struct ResidualNormArguments {
  int64_t rows, width, tasks;
  int32_t threads, bfloat16, rms;
  float epsilon;
  const float* residual;     // (rows, width); in backward, the sum x
  const void* update;        // (rows, width) or null
  const float *weight, *bias;  // (width); bias may be null
  float* sum;                // (rows, width): x
  void* out;                 // (rows, width)
  // backward only
  const void* grad_out;   // (rows, width)
  const float* grad_sum;  // (rows, width)
  float* grad_residual;   // (rows, width)
  float *grad_weight, *grad_bias;  // (tasks, width); grad_bias may be null
};

namespace {

template <class T>
class ResidualNorm {
 public:
  ResidualNorm(const ResidualNormArguments& a, int64_t task)
      : a_(a), first_(a.rows * task / a.tasks), last_(a.rows * (task + 1) / a.tasks), task_(task),
        blocks_((a.width + kLanes - 1) / kLanes), x_(blocks_) {}

  void forward() {
    const T* update = static_cast<const T*>(a_.update);
    for (int64_t row = first_; row < last_; ++row) {
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t at = row * a_.width + block * kLanes;
        x_[block] = load(a_.residual + at, lanes(block));
        if (update) x_[block] += load(update + at, lanes(block));
        store(a_.sum + at, x_[block], lanes(block));
      }
      normalise();
      for (int64_t block = 0; block < blocks_; ++block) {
        Vec y = x_[block] * load(a_.weight + block * kLanes, lanes(block));
        if (a_.bias) y += load(a_.bias + block * kLanes, lanes(block));
        store(static_cast<T*>(a_.out) + row * a_.width + block * kLanes, y, lanes(block));
      }
    }
  }

  void backward() {
    std::vector<Vec> grad_weight(blocks_), grad_bias(blocks_), grad(blocks_);
    for (int64_t row = first_; row < last_; ++row) {
      for (int64_t block = 0; block < blocks_; ++block)
        x_[block] = load(a_.residual + row * a_.width + block * kLanes, lanes(block));
      const float scale = normalise();
      Vec total = {}, projected = {};
      for (int64_t block = 0; block < blocks_; ++block) {
        const Vec out = load(static_cast<const T*>(a_.grad_out) + row * a_.width + block * kLanes, lanes(block));
        grad_weight[block] += out * x_[block];
        grad_bias[block] += out;
        grad[block] = out * load(a_.weight + block * kLanes, lanes(block));
        total += grad[block];
        projected += grad[block] * x_[block];
      }
      const float mean = a_.rms ? 0.0f : mambabyte::sum(total) / a_.width;
      const float along = mambabyte::sum(projected) / a_.width;
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t at = row * a_.width + block * kLanes;
        const Vec passed = load(a_.grad_sum + at, lanes(block));
        store(a_.grad_residual + at, passed + (grad[block] - mean - x_[block] * along) * scale, lanes(block));
      }
    }
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t at = task_ * a_.width + block * kLanes;
      store(a_.grad_weight + at, grad_weight[block], lanes(block));
      if (a_.grad_bias) store(a_.grad_bias + at, grad_bias[block], lanes(block));
    }
  }

 private:
  int lanes(int64_t block) const { return int(std::min<int64_t>(kLanes, a_.width - block * kLanes)); }

  // Turns the row x_ into its normalised form; returns 1 / sqrt(var + epsilon). Missing lanes stay zero.
  float normalise() {
    float mean = 0;
    if (!a_.rms) {
      Vec total = {};
      for (const Vec& x : x_) total += x;
      mean = mambabyte::sum(total) / a_.width;
      for (Vec& x : x_) x -= mean;
      Vec& last = x_[blocks_ - 1];
      for (int i = lanes(blocks_ - 1); i < kLanes; ++i) last[i] = 0;
    }
    Vec squares = {};
    for (const Vec& x : x_) squares += x * x;
    const float scale = 1.0f / std::sqrt(mambabyte::sum(squares) / a_.width + a_.epsilon);
    for (Vec& x : x_) x *= scale;
    return scale;
  }

  const ResidualNormArguments& a_;
  const int64_t first_, last_, task_, blocks_;
  std::vector<Vec> x_;
};

template <class T>
void run_all(const ResidualNormArguments& a, bool backward) {
#pragma omp parallel for schedule(static) num_threads(a.threads) if (a.threads > 1)
  for (int64_t task = 0; task < a.tasks; ++task) {
    FlushDenormals guard;
    ResidualNorm<T> norm(a, task);
    backward ? norm.backward() : norm.forward();
  }
}

void dispatch(const ResidualNormArguments& a, bool backward) {
  if (a.bfloat16)
    run_all<BFloat16>(a, backward);
  else
    run_all<float>(a, backward);
}

}  // namespace
}  // namespace mambabyte

extern "C" {
void mambabyte_residual_norm_forward(const mambabyte::ResidualNormArguments* a) { mambabyte::dispatch(*a, false); }
void mambabyte_residual_norm_backward(const mambabyte::ResidualNormArguments* a) { mambabyte::dispatch(*a, true); }
}
