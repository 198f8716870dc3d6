// The state space dual of Mamba-2 (arXiv 2405.21060, section 6) on a CPU, forward and backward:
//
//   h[t] = a[t] h[t-1] + x[t] B[t]^T        y[t] = h[t] C[t]        a = exp(log_decay)
//
// Time runs in chunks of kChunk steps. With S the state before a chunk, transposed to (N, P), and W[t,s] the product
// C[t] B[s] times the decays after s up to t, or zero for s > t, a chunk is four matrix products:
//
//   y = W x + (entering C) S        S' = whole S + B^T (leaving x)
//
// where entering[t] is the product of decays up to t, leaving[t] that of those after t, and `whole` that of all. A
// document's start cuts them off. The backward pass has S of each chunk and goes from the last chunk to the first:
//
//   dx = W^T dy + leaving B dS'     dS = whole dS' + (entering C)^T dy      K = dy x^T, decayed as W
//   dC = K B + entering dy S^T      dB = K^T C + leaving x dS'^T
//
// C B^T, K B and K^T C are taken once for all heads that share B and C. Nothing is longer than a chunk.
//
// Work is split over (batch, group, part of the group's heads). Each part writes its own sums over heads of the
// gradients of B and C, so results do not depend on the order in which threads run.
#include <memory>

#include "products.h"
#include "ssd.h"

namespace mambabyte {

struct SSDArguments {
  int64_t batch, length, heads, channels, groups, states, parts;
  int32_t threads, bfloat16, keep_states;
  RawRows x, B, C;                // (B, L, H P) and (B, L, G N)
  const float* log_decay;         // (B, H, L) or null
  const uint8_t* document_start;  // (B, L) or null
  RawRows out;
  // (B, chunks + 1, H, rows of N, lanes of P): the state at each chunk's start and after the last one; the caller fills
  // [:, 0]. With keep_states == 0 it holds two of them, used alternately.
  float* states_data;
  // backward only
  RawRows grad_out, grad_x;
  float* grad_state;       // (B, H, rows of N, lanes of P): in, of the final state; out, of the initial state
  float* grad_log_decay;   // (B, H, L) or null
  float *grad_B, *grad_C;  // (B, parts, L, G, N)
};

namespace {

// One batch element, one group of heads and one part of them.
class SSD {
 public:
  SSD(const SSDArguments& arguments, int64_t task)
      : arguments_(arguments), batch_(task / (arguments.groups * arguments.parts)),
        group_(task / arguments.parts % arguments.groups), part_(task % arguments.parts), N_(arguments.states),
        P_(arguments.channels), rows_(round_up(N_, kTileRows)), stride_(round_up(P_, kLanes)),
        chunks_(ceil_divide(arguments.length, kChunk)) {
    const int64_t heads = arguments.heads / arguments.groups, first = group_ * heads;
    first_head_ = first + heads * part_ / arguments.parts;
    last_head_ = first + heads * (part_ + 1) / arguments.parts;
  }

  void forward() {
    allocate({{&B_, rows_}, {&C_, rows_}, {&products_, kChunk}, {&weights_, kChunk}}, {&x_, &y_});
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      load_chunk(chunk);
      for (int64_t head = first_head_; head < last_head_; ++head) forward(chunk, head);
    }
  }

  void backward() {
    allocate({{&B_, rows_}, {&C_, rows_}, {&products_, kChunk}, {&weights_, kChunk}, {&grad_B_, rows_},
              {&grad_C_, rows_}, {&grad_products_, kChunk}, {&x_transposed_, stride_}, {&grad_y_transposed_, stride_}},
             {&x_, &grad_x_, &grad_y_});
    for (int64_t chunk = chunks_ - 1; chunk >= 0; --chunk) {
      load_chunk(chunk);
      for (float* sum : {grad_B_, grad_C_}) std::fill(sum, sum + rows_ * kChunk, 0.0f);
      std::fill(grad_products_, grad_products_ + kChunk * kChunk, 0.0f);
      for (int64_t head = first_head_; head < last_head_; ++head) backward(chunk, head);
      finish_B_and_C();
    }
  }

 private:
  struct Transposed {
    float** matrix;
    int64_t rows;
  };

  // Matrices with the steps of a chunk along their rows, and matrices of a row of P numbers for each step.
  void allocate(std::initializer_list<Transposed> transposed, std::initializer_list<float**> plain) {
    const int64_t widest = std::max(stride_, round_up(N_, kLanes));
    int64_t size = kChunk * widest;
    for (const Transposed& one : transposed) size += one.rows * kChunk;
    for (size_t i = 0; i < plain.size(); ++i) size += kChunk * stride_;
    memory_.reset(new Vec[size / kLanes]);
    float* next = scratch_ = reinterpret_cast<float*>(memory_.get());
    next += kChunk * widest;
    for (const Transposed& one : transposed) *one.matrix = next, next += one.rows * kChunk;
    for (float** one : plain) *one = next, next += kChunk * stride_;
  }

  template <class Function>
  void with_type(const Function& function) const {
    with_activation_type(arguments_.bfloat16, function);
  }

  // The rows of one chunk; `column` is where they begin in a row of all heads or groups.
  void read(const RawRows& from, int64_t column, int64_t width, float* to, int64_t stride) const {
    with_type([&](auto type) {
      const auto rows = from.as<const decltype(type)>();
      read_rows(rows.at(batch_, begin_) + column, rows.time_stride, steps_, width, to, stride, vectors_ * kLanes);
    });
  }
  void write(const RawRows& to, int64_t column, const float* from) const {
    with_type([&](auto type) {
      const auto rows = to.as<decltype(type)>();
      write_rows(rows.at(batch_, begin_) + column, rows.time_stride, steps_, P_, from, stride_);
    });
  }
  // A head's part of a row is too short for hardware prefetchers. So some rows are prefetched with each tile of a
  // product: of what the next head reads, and of what this one will write.
  template <bool Write>
  INLINE void prefetch(const RawRows& rows, int64_t step, int64_t head) const {
    const int64_t size = arguments_.bfloat16 ? sizeof(BFloat16) : sizeof(float);
    const char* first = rows.as<const char>().data +
                        (batch_ * rows.batch_stride + (begin_ + step) * rows.time_stride + head * P_) * size;
    for (int row = 0; row < kTileRows; ++row)
      for (int64_t i = 0; i < P_ * size; i += 64) __builtin_prefetch(first + row * rows.time_stride * size + i, Write);
  }

  void read_transposed(const RawRows& from, float* to) const {
    const int64_t stride = round_up(N_, kLanes);
    read(from, group_ * N_, N_, scratch_, stride);
    transpose(scratch_, stride, vectors_ * kLanes, rows_, to, kChunk);
  }

  float* state(int64_t chunk, int64_t head) const {
    const int64_t kept = arguments_.keep_states ? chunks_ + 1 : 2, slot = arguments_.keep_states ? chunk : chunk % 2;
    return arguments_.states_data + ((batch_ * kept + slot) * arguments_.heads + head) * rows_ * stride_;
  }

  void load_chunk(int64_t chunk) {
    begin_ = chunk * kChunk;
    steps_ = int(std::min<int64_t>(kChunk, arguments_.length - begin_));
    vectors_ = ceil_divide(steps_, kLanes);
    read_transposed(arguments_.B, B_);
    read_transposed(arguments_.C, C_);
    for_later_steps([&](int s, int64_t first, auto V) INLINE {
      Tile<V> tile;
      tile.multiply({B_ + s, 1, kChunk}, C_ + first * kLanes, kChunk, N_);
      tile.store_rows(products_ + s * kChunk + first * kLanes, kChunk);
    });
  }

  void load_head(int64_t head) {
    read(arguments_.x, head * P_, P_, x_, stride_);
    const int64_t row = (batch_ * arguments_.heads + head) * arguments_.length + begin_;
    const uint8_t* start = arguments_.document_start;
    decays_.set(arguments_.log_decay ? arguments_.log_decay + row : nullptr,
                start ? start + batch_ * arguments_.length + begin_ : nullptr, steps_);
  }

  // Calls function(s, first, V) for the tiles that hold the pairs (s, t) of a step and one not before it.
  template <class Function>
  INLINE void for_later_steps(const Function& function) const {
    for (int s = 0; s < steps_; s += kTileRows)
      panels(s / kLanes, vectors_, [&](int64_t first, auto V) INLINE { function(s, first, V); });
  }

  // Calls function(row, offset of the tile in a matrix (rows, P), its first vector, V).
  template <class Function>
  INLINE void for_channels(int64_t rows, const Function& function) const {
    tiles(rows, stride_ / kLanes, [&](int64_t row, int64_t first, auto V) INLINE {
      function(row, row * stride_ + first * kLanes, first, V);
    });
  }

  void scale(float* matrix, const Vec* factors) const {
    for (int t = 0; t < steps_; ++t)
      for (int64_t i = 0; i < stride_; i += kLanes) {
        float* p = matrix + t * stride_ + i;
        store(p, load(p, kLanes) * Decays::at(factors, t), kLanes);
      }
  }

  void forward(int64_t chunk, int64_t head) {
    load_head(head);
    for (int s = 0; s < steps_; ++s)
      panels(s / kLanes, vectors_, [&](int64_t first, auto V) INLINE {
        Vec decay[V.value];
        decays_.between(s, first, decay);
        const int64_t at = s * kChunk + first * kLanes;
        each<V>([&](auto i) INLINE {
          store(weights_ + at + i * kLanes, decay[i] * load(products_ + at + i * kLanes, kLanes), kLanes);
        });
      });
    const float* before = state(chunk, head);
    for_channels(steps_, [&](int64_t t, int64_t at, int64_t first, auto V) INLINE {
      if (first == 0) prefetch<false>(arguments_.x, t, head + 1), prefetch<true>(arguments_.out, t, head);
      Tile<V> tile;
      tile.multiply({C_ + t, 1, kChunk}, before + first * kLanes, stride_, N_);
      tile.each_sum([&](Vec& sum, auto row, auto) INLINE { sum *= Decays::at(decays_.entering, t + row); });
      tile.multiply({weights_ + t, 1, kChunk}, x_ + first * kLanes, stride_, std::min<int64_t>(t + kTileRows, steps_));
      tile.store_rows(y_ + at, stride_);
    });
    write(arguments_.out, head * P_, y_);

    scale(x_, decays_.leaving);
    float* after = state(chunk + 1, head);
    for_channels(rows_, [&](int64_t n, int64_t at, int64_t first, auto V) INLINE {
      Tile<V> tile;
      tile.each_sum([&](Vec& sum, auto row, auto vector) INLINE {
        sum = load(before + at + row * stride_ + vector * kLanes, kLanes) * decays_.whole;
      });
      tile.multiply({B_ + n * kChunk, kChunk, 1}, x_ + first * kLanes, stride_, steps_);
      tile.store_rows(after + at, stride_);
    });
  }

  void backward(int64_t chunk, int64_t head) {
    load_head(head);
    read(arguments_.grad_out, head * P_, P_, grad_y_, stride_);
    transpose(x_, stride_, vectors_ * kLanes, stride_, x_transposed_, kChunk);
    transpose(grad_y_, stride_, vectors_ * kLanes, stride_, grad_y_transposed_, kChunk);
    const float* before = state(chunk, head);
    float* carry = arguments_.grad_state + (batch_ * arguments_.heads + head) * rows_ * stride_;
    // Of the exponents: what a pair of steps (s, t) with s < t adds belongs to the decays after s up to t.
    Vec to_step[kChunkVectors] = {}, from_step[kChunkVectors] = {}, from_before[kChunkVectors] = {},
        to_after[kChunkVectors] = {}, through = {};

    differentiate_pairs(to_step, from_step);
    for_channels(steps_, [&](int64_t s, int64_t at, int64_t first, auto V) INLINE {
      if (first == 0) {
        prefetch<false>(arguments_.x, s, head + 1), prefetch<false>(arguments_.grad_out, s, head + 1);
        prefetch<true>(arguments_.grad_x, s, head);
      }
      Tile<V> tile;
      tile.multiply({B_ + s, 1, kChunk}, carry + first * kLanes, stride_, N_);
      tile.each_sum([&](Vec& sum, auto row, auto) INLINE { sum *= Decays::at(decays_.leaving, s + row); });
      tile.multiply({weights_ + s * kChunk + s, kChunk, 1}, grad_y_ + s * stride_ + first * kLanes, stride_,
                    steps_ - s);
      tile.store_rows(grad_x_ + at, stride_);
    });
    write(arguments_.grad_x, head * P_, grad_x_);
    differentiate_by_state(before, grad_y_transposed_, decays_.entering, C_, grad_C_, from_before);
    differentiate_by_state(carry, x_transposed_, decays_.leaving, B_, grad_B_, to_after);

    scale(grad_y_, decays_.entering);
    for_channels(rows_, [&](int64_t n, int64_t at, int64_t first, auto V) INLINE {
      Tile<V> tile;
      Vec totals[V.value] = {};
      tile.each_sum([&](Vec& sum, auto row, auto vector) INLINE {
        const int64_t place = at + row * stride_ + vector * kLanes;
        sum = load(carry + place, kLanes) * decays_.whole;
        totals[vector] += sum * load(before + place, kLanes);
      });
      each<V>([&](auto i) INLINE { through += totals[i]; });
      tile.multiply({C_ + n * kChunk, kChunk, 1}, grad_y_ + first * kLanes, stride_, steps_);
      tile.store_rows(carry + at, stride_);
    });
    if (arguments_.grad_log_decay) {
      for (int i = 0; i < kChunkVectors; ++i) to_step[i] += from_before[i];
      differentiate_decays(head, to_step, from_step, to_after, sum(through));
    }
  }

  // W, the gradients of C B^T summed over heads, and of the exponents of W's pairs the sums for each of their steps.
  void differentiate_pairs(Vec* to_step, Vec* from_step) {
    for_later_steps([&](int s, int64_t first, auto V) INLINE {
      Tile<V> tile;
      tile.multiply({x_ + s * stride_, stride_, 1}, grad_y_transposed_ + first * kLanes, kChunk, P_);
      Vec to[V.value] = {};
      each<kTileRows>([&](auto row) INLINE {
        Vec decay[V.value], total = {};
        decays_.between(s + row, first, decay);
        each<V>([&](auto i) INLINE {
          const int64_t at = (s + row) * kChunk + (first + i) * kLanes;
          const Vec weight = decay[i] * load(products_ + at, kLanes), grad = tile.sums[row][i];
          store(weights_ + at, weight, kLanes);
          store(grad_products_ + at, load(grad_products_ + at, kLanes) + grad * decay[i], kLanes);
          const Vec exponent = Decays::index(first + i) > float(s + row) ? grad * weight : Vec{};
          to[i] += exponent;
          total += exponent;
        });
        reinterpret_cast<float*>(from_step)[s + row] += sum(total);
      });
      each<V>([&](auto i) INLINE { to_step[first + i] += to[i]; });
    });
  }

  // The gradient of B (or C), which a state of (N, P) and vectors of P numbers for each step, transposed, make with a
  // factor for each step; and the gradient of the factors' exponents.
  void differentiate_by_state(const float* state, const float* vectors, const Vec* factors, const float* other,
                              float* gradient, Vec* exponents) const {
    tiles(rows_, vectors_, [&](int64_t n, int64_t first, auto V) INLINE {
      Tile<V> tile;
      tile.multiply({state + n * stride_, stride_, 1}, vectors + first * kLanes, kChunk, P_);
      Vec totals[V.value] = {};
      tile.each_sum([&](Vec& sum, auto row, auto vector) INLINE {
        const int64_t at = (n + row) * kChunk + (first + vector) * kLanes;
        const Vec value = sum * factors[first + vector];
        store(gradient + at, load(gradient + at, kLanes) + value, kLanes);
        totals[vector] += value * load(other + at, kLanes);
      });
      each<V>([&](auto i) INLINE { exponents[first + i] += totals[i]; });
    });
  }

  // A decay's exponent is part of every pair of a step before it and one not before it.
  void differentiate_decays(int64_t head, const Vec* to_step, const Vec* from_step, const Vec* to_after,
                            double through) {
    float* gradient = arguments_.grad_log_decay + (batch_ * arguments_.heads + head) * arguments_.length + begin_;
    const uint8_t* start = arguments_.document_start;
    if (start) start += batch_ * arguments_.length + begin_;
    double later[kChunk], total = 0;
    for (int t = steps_ - 1; t >= 0; --t) {
      total += Decays::at(to_step, t) - Decays::at(from_step, t);
      later[t] = total;
    }
    total = through;
    for (int t = 0; t < steps_; ++t) {
      gradient[t] = start && start[t] ? 0.0f : float(later[t] + total);
      total += Decays::at(to_after, t);
    }
  }

  // Adds what the pairs of steps in the chunk make, and writes the gradients.
  void finish_B_and_C() {
    tiles(rows_, vectors_, [&](int64_t n, int64_t first, auto V) INLINE {
      const int64_t last = std::min<int64_t>((first + V) * kLanes, steps_);
      add_product<V>({B_ + n * kChunk, kChunk, 1}, grad_products_ + first * kLanes, last,
                     grad_C_ + n * kChunk + first * kLanes);
    });
    transpose(grad_products_, kChunk, vectors_ * kLanes, vectors_ * kLanes, weights_, kChunk);
    tiles(rows_, vectors_, [&](int64_t n, int64_t first, auto V) INLINE {
      const int64_t t = first * kLanes;
      add_product<V>({C_ + n * kChunk + t, kChunk, 1}, weights_ + t * kChunk + t, steps_ - t, grad_B_ + n * kChunk + t);
    });
    write_transposed(grad_B_, arguments_.grad_B);
    write_transposed(grad_C_, arguments_.grad_C);
  }

  template <int V>
  INLINE void add_product(Left left, const float* right, int64_t count, float* out) const {
    Tile<V> tile;
    tile.each_sum(
        [&](Vec& sum, auto row, auto vector) INLINE { sum = load(out + row * kChunk + vector * kLanes, kLanes); });
    tile.multiply(left, right, kChunk, count);
    tile.store_rows(out, kChunk);
  }

  void write_transposed(const float* gradient, float* out) const {
    const int64_t stride = round_up(N_, kLanes), groups = arguments_.groups;
    transpose(gradient, kChunk, rows_, vectors_ * kLanes, scratch_, stride);
    const int64_t row = (batch_ * arguments_.parts + part_) * arguments_.length + begin_;
    write_rows(out + (row * groups + group_) * N_, groups * N_, steps_, N_, scratch_, stride);
  }

  const SSDArguments& arguments_;
  const int64_t batch_, group_, part_, N_, P_;
  const int64_t rows_, stride_;  // N and P with what fills the last tile and the last vector
  const int64_t chunks_;
  int64_t first_head_, last_head_;
  // the chunk's
  int64_t begin_, vectors_;
  int steps_;
  Decays decays_;
  std::unique_ptr<Vec[]> memory_;
  float* scratch_;
  // (rows of N, steps): B, C and their gradients; (s, t): C B^T, its gradient, and W, each as its transpose
  float *B_, *C_, *grad_B_, *grad_C_, *products_, *grad_products_, *weights_;
  float *x_, *y_, *grad_x_, *grad_y_;    // (steps, P)
  float *x_transposed_, *grad_y_transposed_;     // (P, steps)
};

void dispatch(const SSDArguments& arguments, bool backward) {
  run_tasks(arguments.batch * arguments.groups * arguments.parts, arguments.threads, [&](int64_t task) {
    SSD ssd(arguments, task);
    backward ? ssd.backward() : ssd.forward();
  });
}

}  // namespace

extern "C" {
int mambabyte_ssd_chunk() { return kChunk; }
int mambabyte_ssd_lanes() { return kLanes; }
int mambabyte_ssd_rows() { return kTileRows; }
int mambabyte_ssd_arguments_size() { return sizeof(SSDArguments); }
void mambabyte_ssd_forward(const SSDArguments* a) { dispatch(*a, false); }
void mambabyte_ssd_backward(const SSDArguments* a) { dispatch(*a, true); }
}
}  // namespace mambabyte
