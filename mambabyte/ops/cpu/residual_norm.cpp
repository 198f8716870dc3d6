// The residual stream's addition and the norm after it in one pass over memory, forward and backward:
//
//   x = residual + update
//   out = (x - mean) / sqrt(var + epsilon) * weight + bias        RMS norm: mean = 0, var = mean(x^2)
//
// Rows are split over tasks; each task sums its own part of the gradients of weight and bias, so results do not depend
// on the order in which threads run.
#include <vector>

#include "kernel.h"

namespace mambabyte {

struct ResidualNormArguments {
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
  ResidualNorm(const ResidualNormArguments& arguments, int64_t task)
      : arguments_(arguments), first_(arguments.rows * task / arguments.tasks),
        last_(arguments.rows * (task + 1) / arguments.tasks), task_(task),
        blocks_(ceil_divide(arguments.width, kLanes)), x_(blocks_) {}

  void forward() {
    const T* update = static_cast<const T*>(arguments_.update);
    for (int64_t row = first_; row < last_; ++row) {
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t at = row * arguments_.width + block * kLanes;
        x_[block] = load(arguments_.residual + at, lanes(block));
        if (update) x_[block] += load(update + at, lanes(block));
        store(arguments_.sum + at, x_[block], lanes(block));
      }
      normalise();
      for (int64_t block = 0; block < blocks_; ++block) {
        Vec y = x_[block] * load(arguments_.weight + block * kLanes, lanes(block));
        if (arguments_.bias) y += load(arguments_.bias + block * kLanes, lanes(block));
        store(static_cast<T*>(arguments_.out) + row * arguments_.width + block * kLanes, y, lanes(block));
      }
    }
  }

  void backward() {
    const T* grad_out = static_cast<const T*>(arguments_.grad_out);
    std::vector<Vec> grad_weight(blocks_), grad_bias(blocks_), grad(blocks_);
    for (int64_t row = first_; row < last_; ++row) {
      for (int64_t block = 0; block < blocks_; ++block)
        x_[block] = load(arguments_.residual + row * arguments_.width + block * kLanes, lanes(block));
      const float scale = normalise();
      Vec total = {}, projected = {};
      for (int64_t block = 0; block < blocks_; ++block) {
        const Vec out = load(grad_out + row * arguments_.width + block * kLanes, lanes(block));
        grad_weight[block] += out * x_[block];
        grad_bias[block] += out;
        grad[block] = out * load(arguments_.weight + block * kLanes, lanes(block));
        total += grad[block];
        projected += grad[block] * x_[block];
      }
      const float mean = arguments_.rms ? 0.0f : mambabyte::sum(total) / arguments_.width;
      const float along = mambabyte::sum(projected) / arguments_.width;
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t at = row * arguments_.width + block * kLanes;
        const Vec passed = load(arguments_.grad_sum + at, lanes(block));
        store(arguments_.grad_residual + at, passed + (grad[block] - mean - x_[block] * along) * scale, lanes(block));
      }
    }
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t at = task_ * arguments_.width + block * kLanes;
      store(arguments_.grad_weight + at, grad_weight[block], lanes(block));
      if (arguments_.grad_bias) store(arguments_.grad_bias + at, grad_bias[block], lanes(block));
    }
  }

 private:
  int lanes(int64_t block) const { return lanes_from(block * kLanes, arguments_.width); }

  // Normalises the row x_ in place and returns 1 / sqrt(var + epsilon). Lanes that are not in use stay zero.
  float normalise() {
    float mean = 0;
    if (!arguments_.rms) {
      Vec total = {};
      for (const Vec& x : x_) total += x;
      mean = mambabyte::sum(total) / arguments_.width;
      for (Vec& x : x_) x -= mean;
      Vec& last = x_[blocks_ - 1];
      for (int i = lanes(blocks_ - 1); i < kLanes; ++i) last[i] = 0;
    }
    Vec squares = {};
    for (const Vec& x : x_) squares += x * x;
    const float scale = 1.0f / std::sqrt(mambabyte::sum(squares) / arguments_.width + arguments_.epsilon);
    for (Vec& x : x_) x *= scale;
    return scale;
  }

  const ResidualNormArguments& arguments_;
  const int64_t first_, last_, task_, blocks_;
  std::vector<Vec> x_;
};

void dispatch(const ResidualNormArguments& arguments, bool backward) {
  with_activation_type(arguments.bfloat16, [&](auto activation) {
    run_tasks(arguments.tasks, arguments.threads, [&](int64_t task) {
      ResidualNorm<decltype(activation)> norm(arguments, task);
      backward ? norm.backward() : norm.forward();
    });
  });
}

}  // namespace

extern "C" {
int mambabyte_residual_norm_arguments_size() { return sizeof(ResidualNormArguments); }
void mambabyte_residual_norm_forward(const ResidualNormArguments* a) { dispatch(*a, false); }
void mambabyte_residual_norm_backward(const ResidualNormArguments* a) { dispatch(*a, true); }
}
}  // namespace mambabyte
