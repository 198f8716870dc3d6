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
//
// A call reads a window of L bytes of each row, and gives the same bits as L calls that read one: the products take
// each of the B L positions for a row of a batch; convolution and scan go through a row's positions one by one.
#include <memory>
#include <type_traits>

#include "mamba_step.h"

namespace mambabyte {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif
constexpr int kOutputs = 4, kAlone = 8;  // of a product at a time, for kRows rows or one: their sums fit in registers

// T is the type of the large matrices.
template <class T>
class MambaStep : MambaRecurrence {
 public:
  explicit MambaStep(const MambaStepArguments& arguments)
      : MambaRecurrence(arguments), memory_(new float[size() + 16]), residual_(aligned(memory_.get())),
        update_(residual_ + positions_ * arguments.d_model), normed_(update_ + positions_ * arguments.d_model),
        z_(normed_ + positions_ * arguments.d_model), y_(z_ + positions_ * arguments.d_inner),
        features_(y_ + positions_ * arguments.d_inner), scratch_(features_ + positions_ * features()) {}

  // Every thread of a parallel region calls this.
  void run() {
    FlushDenormals guard;
    const int64_t d_model = arguments_.d_model, d_inner = arguments_.d_inner;
    if (features()) {
      share_blocks(positions_, 1, [&](int64_t position, int64_t) {
        look_up(position, features_ + position * features());
      });
      share_blocks(d_model, kLanes, [&](int64_t first, int64_t last) {
        product<float>(arguments_.embedding.projection, nullptr, features(), features_, positions_, update_, d_model,
                       first, last);
      });
    }
    for (int64_t layer = 0; layer < arguments_.layers; ++layer) {
      const MambaStepBlock& block = arguments_.blocks[layer];
      const MambaStepState& state = arguments_.state[layer];
      const Inputs in = arguments_.inputs ? inputs(arguments_.inputs, layer) : inputs(scratch_, 0);
      normalise(block.norm_weight, block.norm_bias, layer, 1, normed_);
      const T* in_proj = static_cast<const T*>(block.in_proj);
      share_blocks(d_inner, kLanes, [&](int64_t first, int64_t last) {
        product<T>(in_proj, block.in_proj_scale, d_model, normed_, positions_, in.x, d_inner, first, last);
        product<T>(in_proj + d_inner * d_model, block.in_proj_scale ? block.in_proj_scale + d_inner : nullptr, d_model,
                   normed_, positions_, z_, d_inner, first, last);
        convolve(block, state, in, first, int(last - first));
      });
      share_blocks(projected_, kAlone, [&](int64_t first, int64_t last) {
        product<T>(block.x_proj, block.x_proj_scale, d_inner, in.u, positions_, in.parameters, projected_, first, last);
      });
      share_blocks(d_inner, kLanes, [&](int64_t first, int64_t last) {
        scan(block, state, in, z_, y_, first, int(last - first));
      });
      share_blocks(d_model, kLanes, [&](int64_t first, int64_t last) {
        product<T>(block.out_proj, block.out_proj_scale, d_inner, y_, positions_, update_, d_model, first, last);
      });
    }
    if (features()) share_blocks(arguments_.batch, 1, [&](int64_t row, int64_t) { remember(row, arguments_.length); });
    const int64_t every = arguments_.last_only ? arguments_.length : 1;
    float* hidden = arguments_.hidden ? arguments_.hidden : normed_;
    normalise(arguments_.norm_weight, arguments_.norm_bias, arguments_.layers, every, hidden);
    share_blocks(arguments_.vocabulary, kLanes, [&](int64_t first, int64_t last) {
      product<T>(arguments_.head, arguments_.head_scale, d_model, hidden, positions_ / every, arguments_.logits,
                 arguments_.vocabulary, first, last);
    });
  }

 private:
  int64_t size() const {
    return positions_ * (3 * arguments_.d_model + 2 * arguments_.d_inner + features()) +
           (arguments_.inputs ? 0 : inputs_size());
  }

  // Vectors that straddle two cache lines load at half the speed.
  static float* aligned(float* memory) {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory) + 63) & ~uintptr_t(63));
  }

  // Of the n-grams that end at a position. What they add to a byte's embedding is the first layer's update.
  int64_t features() const {
    return arguments_.x ? 0 : (arguments_.embedding.longest - 1) * arguments_.embedding.width;
  }

  // out[row, first:last] = scale[first:last] weight[first:last] x[row] for all rows; weight (.., columns), x (rows,
  // columns), out (rows, width). Not inlined, as it is large and has five callers.
  template <class Weight>
  [[gnu::noinline]] void product(const void* weight, const float* scale, int64_t columns, const float* x, int64_t rows,
                                 float* out, int64_t width, int64_t first, int64_t last) const {
    const Weight* matrix = static_cast<const Weight*>(weight);
    if constexpr (!std::is_same<Weight, float>::value && kRows < 4) {
      if (rows >= 8) {  // Widened once for all rows: two at a time are too few to hide it each time.
        const std::unique_ptr<float[]> memory(new float[kOutputs * columns + 16]);
        float* wide = aligned(memory.get());
        for (int64_t output = first; output < last; output += kOutputs) {
          const int64_t some = std::min<int64_t>(kOutputs, last - output), count = some * columns;
          const Weight* narrow = matrix + output * columns;
          for (int64_t k = 0; k < count; k += kLanes) {
            __builtin_prefetch(narrow + kOutputs * columns + k);
            store(wide + k, load(narrow + k, lanes_from(k, count)), lanes_from(k, count));
          }
          product<float>(wide, scale ? scale + output : nullptr, columns, x, rows, out + output, width, 0, some);
        }
        return;
      }
    }
    const auto tile = [&](auto outputs, auto some, int64_t output, int64_t row) {
      constexpr int Outputs = decltype(outputs)::value, Rows = decltype(some)::value;
      float found[kLanes];
      store(found, dot<Outputs, Rows>(matrix + output * columns, x + row * columns, columns), kLanes);
      for (int j = 0; scale && j < Rows; ++j)
        for (int i = 0; i < Outputs; ++i) found[j * kOutputs + i] *= scale[output + i];
      for (int j = 0; j < Rows; ++j)
        std::memcpy(out + (row + j) * width + output, found + j * kOutputs, Outputs * sizeof(float));
    };
    const auto strip = [&](auto outputs, int64_t output) {
      int64_t row = 0;
      for (; row + kRows <= rows; row += kRows) tile(outputs, Number<kRows>(), output, row);
      if constexpr (kRows > 2) {
        if (rows - row == 3) tile(outputs, Number<3>(), output, row);
        if (rows - row == 2) tile(outputs, Number<2>(), output, row);
      }
      if (rows - row == 1) tile(outputs, Number<1>(), output, row);
    };
    int64_t output = first;
    if (rows == 1)
      for (; output + kAlone <= last; output += kAlone) tile(Number<kAlone>(), Number<1>(), output, 0);
    for (; output + kOutputs <= last; output += kOutputs) strip(Number<kOutputs>(), output);
    for (; output < last; ++output) strip(Number<1>(), output);
  }

  template <int Value>
  using Number = std::integral_constant<int, Value>;

  // Each sum has a register of its own, so that its order depends on nothing else. Lane kOutputs j + i of the result is
  // row j times output i.
  template <int Outputs, int Rows, class Weight>
  static Vec dot(const Weight* weight, const float* x, int64_t columns) {
    static_assert(Rows == 1 || Outputs <= kOutputs, "");
    constexpr int64_t kLine = 64 / sizeof(Weight);
    Vec total[kLanes] = {};
    const auto add = [&](int64_t k, int lanes) INLINE {
      Vec row[Rows];
      each<Rows>([&](auto j) INLINE { row[j] = in_register(load(x + j * columns + k, lanes)); });
      each<Outputs>([&](auto i) INLINE {
        const Vec w = in_register(load(weight + i * columns + k, lanes));
        each<Rows>([&](auto j) INLINE {
          total[j * kOutputs + i] = multiply_add(w, row[j], total[j * kOutputs + i]);
        });
      });
    };
    int64_t k = 0;
    for (; k + kLine <= columns; k += kLine) {
      // The rows that come next, which hardware prefetchers find too late.
      for (int i = 0; i < Outputs; ++i) __builtin_prefetch(weight + (Outputs + i) * columns + k);
      each<kLine / kLanes>([&](auto part) INLINE { add(k + part * kLanes, kLanes); });
    }
    for (; k + kLanes <= columns; k += kLanes) add(k, kLanes);
    if (k < columns) add(k, int(columns - k));
    return sums(total);
  }

  // residual += update, of the layer before if there was one; normed = norm(residual), of every `every`-th position.
  void normalise(const float* weight, const float* bias, int64_t layer, int64_t every, float* normed) {
    const int64_t width = arguments_.d_model;
    const bool updated = layer > 0 || features();
    share_blocks(positions_ / every, 1, [&](int64_t row, int64_t) {
      const int64_t place = ((row + 1) * every - 1) * width;
      float *x = residual_ + place, *out = normed + row * width;
      const float* before = layer > 0 ? x : arguments_.x ? arguments_.x + place : embedded(row);
      Vec total = {}, squares = {};
      for (int64_t k = 0; k < width; k += kLanes) {
        const int lanes = lanes_from(k, width);
        Vec v = load(before + k, lanes);
        if (updated) v += load(update_ + place + k, lanes);
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

  const float* embedded(int64_t position) const {
    return arguments_.embedding.embedding + arguments_.bytes[position] * arguments_.d_model;
  }

  const std::unique_ptr<float[]> memory_;
  float *residual_, *update_, *normed_, *z_, *y_, *features_, *scratch_;
};

template <class T>
void run(const MambaStepArguments& arguments) {
  MambaStep<T> step(arguments);
  // Below a million multiplications, threads would mostly wait for each other.
  const int64_t layer = 3 * arguments.d_model * arguments.d_inner;
  const int64_t products = arguments.batch * arguments.length *
                           (arguments.layers * layer + arguments.d_model * arguments.vocabulary);
#pragma omp parallel num_threads(arguments.threads) if (arguments.threads > 1 && products > int64_t(1) << 20)
  step.run();
}

}  // namespace

extern "C" {
int mambabyte_mamba_step_arguments_size() { return sizeof(MambaStepArguments); }
int mambabyte_mamba_step_block_size() { return sizeof(MambaStepBlock); }
int mambabyte_mamba_step_state_size() { return sizeof(MambaStepState); }
int mambabyte_mamba_step_embedding_size() { return sizeof(MambaStepEmbedding); }

// Returns 1, and does nothing, if what is given for a byte is none.
int mambabyte_mamba_step(const MambaStepArguments* a) {
  for (int64_t position = 0; !a->x && position < a->batch * a->length; ++position)
    if (a->bytes[position] < 0 || a->bytes[position] >= a->vocabulary) return 1;
  if (a->storage == 2)
    run<int8_t>(*a);
  else if (a->storage == 1)
    run<BFloat16>(*a);
  else
    run<float>(*a);
  return 0;
}

void mambabyte_mamba_replay(const MambaStepArguments* a) {
  const int64_t blocks = ceil_divide(a->d_inner, kLanes);
  const MambaRecurrence recurrence(*a);
  int64_t count = 0;
  for (int64_t row = 0; row < a->batch; ++row) {
    recurrence.remember(row, a->counts[row]);
    if (a->counts[row] < a->length) count += 1 + a->counts[row];
  }
  const bool alone = count * a->layers * a->d_inner * a->states < int64_t(1) << 18;  // others would come too late
  run_tasks(a->layers * blocks, alone ? 1 : a->threads, [&](int64_t index) {
    const int64_t channel = index % blocks * kLanes;
    recurrence.replay(index / blocks, channel, lanes_from(channel, a->d_inner));
  });
}
}
}  // namespace mambabyte
