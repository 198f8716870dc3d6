// The selective scan of Mamba (arXiv 2312.00752, algorithm 2 and section 3.3.2) on a CPU, forward and backward.
//
//   dt[t]  = softplus(delta[t] + delta_bias)
//   h[t]   = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t]
//   y[t]   = <C[t], h[t]> + D u[t]
//   out[t] = y[t] silu(z[t])
//
// Channels are the vector lanes. Time runs in chunks of kChunk steps and, inside a chunk, the N states in tiles of
// kTile that stay in registers. The states of shape (B, L, D, N) are never written: the forward pass keeps the state at
// each chunk's start, and the backward pass recomputes the chunk from it, as in the paper.
//
// Work is split over (batch, group of channel blocks). Each group writes its own partial sums of the gradients that are
// summed over channels (B, C), so results do not depend on the order in which threads run.
#include "kernel.h"

namespace mambabyte {

constexpr int kChunk = 32;

struct SelectiveScanArguments {
  int64_t batch, length, channels, states, groups;
  int32_t threads, bfloat16, softplus;
  RawRows u, delta, z, B, C;      // z.data may be null
  const float* A;                 // (D, N)
  const float* D;                 // (D) or null
  const float* delta_bias;        // (D) or null
  const uint8_t* document_start;  // (B, L) or null
  RawRows out;
  // (B, chunks + 1, blocks, N, lanes): the state at each chunk's start and after the last one; the caller fills [:, 0].
  // With keep_states == 0 it holds two of them, used alternately.
  float* states_data;
  int32_t keep_states;
  // backward only
  RawRows grad_out, grad_u, grad_delta, grad_z;
  float* grad_state;       // (B, blocks, N, lanes): in, of the final state; out, of the initial state
  float* grad_A;           // (B, blocks, N, lanes)
  float* grad_D;           // (B, D) or null
  float* grad_delta_bias;  // (B, D) or null
  float* grad_B;           // (B, groups, L, N)
  float* grad_C;           // (B, groups, L, N)
};

namespace {

struct Block {  // one block of channels in one chunk; slope: of softplus
  Vec u[kChunk], dt[kChunk], dtu[kChunk], slope[kChunk], y[kChunk];
};

// exp(dt A) of `Tile` states at each step of a chunk; zero where a document starts, which resets the state.
template <int Tile>
inline void decay_tile(const Block& block, int steps, const Vec* A_log2e, const uint8_t* start, Vec* decays) {
  constexpr int kTogether = Tile < 4 ? Tile : 4;
  for (int t = 0; t < steps; ++t)
    for (int n = 0; n < Tile; n += kTogether) {
      Vec decay[kTogether];
      for (int i = 0; i < kTogether; ++i) decay[i] = block.dt[t] * A_log2e[n + i];
      exp2_all<kTogether>(decay);
      for (int i = 0; i < kTogether; ++i) decays[t * Tile + n + i] = decay[i];
    }
  if (start)
    for (int t = 0; t < steps; ++t)
      if (start[t]) std::memset(static_cast<void*>(decays + t * Tile), 0, Tile * sizeof(Vec));
}

// Runs `steps` steps of `Tile` states from `h` and adds to y. With Save, states[t] is the state before step t.
template <int Tile, bool Save>
inline void scan_tile(const Block& block, int steps, const float* B, const float* C, int64_t N, const Vec* decays,
                      Vec* h, Vec* y, Vec* states) {
  Vec state[Tile];
  for (int n = 0; n < Tile; ++n) state[n] = h[n];
  for (int t = 0; t < steps; ++t) {
    const Vec dtu = block.dtu[t];
    Vec total[2] = {y[t], Vec{}};  // two sums halve the chain of additions
#pragma GCC unroll 8
    for (int n = 0; n < Tile; ++n) {
      if (Save) states[t * Tile + n] = state[n];
      state[n] = state[n] * decays[t * Tile + n] + dtu * B[t * N + n];
      total[n % 2] += state[n] * C[t * N + n];
    }
    y[t] = total[0] + total[1];
  }
  for (int n = 0; n < Tile; ++n) h[n] = state[n];
}

struct Gradients {  // of one block of channels in one chunk; z: without the factor y + D u
  Vec y[kChunk], dt[kChunk], dtu[kChunk], z[kChunk];
};

template <int Tile>
inline void backward_tile(const Block& block, Gradients& grad, int steps, const float* B, const float* C, int64_t N,
                          const Vec* A, const Vec* decays, const Vec* states, const Vec* last_state, Vec* carry,
                          Vec* grad_A, Vec* grad_B, Vec* grad_C) {
  Vec adjoint[Tile], rate_grad[Tile];
  for (int n = 0; n < Tile; ++n) adjoint[n] = carry[n], rate_grad[n] = grad_A[n];
  for (int t = steps - 1; t >= 0; --t) {
    const Vec grad_y = grad.y[t], dt = block.dt[t], dtu = block.dtu[t];
    const Vec* after = t + 1 < steps ? states + (t + 1) * Tile : last_state;
    Vec grad_dt = {}, grad_dtu = {};
#pragma GCC unroll 8
    for (int n = 0; n < Tile; ++n) {
      const Vec grad_state = adjoint[n] + grad_y * C[t * N + n];
      grad_C[t * N + n] += grad_y * after[n];
      grad_B[t * N + n] += grad_state * dtu;
      grad_dtu += grad_state * B[t * N + n];
      adjoint[n] = grad_state * decays[t * Tile + n];
      const Vec exponent = adjoint[n] * states[t * Tile + n];  // gradient of dt * A[n]
      grad_dt += exponent * A[n];
      rate_grad[n] += exponent * dt;
    }
    grad.dt[t] += grad_dt;
    grad.dtu[t] += grad_dtu;
  }
  for (int n = 0; n < Tile; ++n) carry[n] = adjoint[n], grad_A[n] = rate_grad[n];
}

template <class T>
class SelectiveScan {
 public:
  SelectiveScan(const SelectiveScanArguments& arguments, bool backward)
      : arguments_(arguments), u_(arguments.u.as<T>()), delta_(arguments.delta.as<T>()), z_(arguments.z.as<T>()),
        out_(arguments.out.as<T>()), N_(arguments.states), blocks_(ceil_divide(arguments.channels, kLanes)),
        chunks_(ceil_divide(arguments.length, kChunk)), backward_(backward) {}

  // One batch element and one contiguous group of channel blocks.
  void run(int64_t batch, int64_t group) {
    const int64_t first = blocks_ * group / arguments_.groups, last = blocks_ * (group + 1) / arguments_.groups;
    B_ = new float[kChunk * N_], C_ = new float[kChunk * N_];
    A_ = new Vec[(last - first) * N_];
    for (int64_t block = first; block < last; ++block)
      for (int64_t n = 0; n < N_; ++n) {
        Vec v = {};
        for (int i = 0; i < lanes(block); ++i) v[i] = arguments_.A[(block * kLanes + i) * N_ + n];
        A_[(block - first) * N_ + n] = v;
      }
    rate_ = new Vec[(last - first) * N_];
    for (int64_t i = 0; i < (last - first) * N_; ++i) rate_[i] = A_[i] * kLog2E;
    if (backward_)
      run_backward(batch, group, first, last);
    else
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        load_chunk(batch, chunk);
        for (int64_t block = first; block < last; ++block) forward(batch, chunk, block, block - first);
      }
    delete[] B_, delete[] C_, delete[] A_, delete[] rate_;
  }

 private:
  int lanes(int64_t block) const { return lanes_from(block * kLanes, arguments_.channels); }
  int steps(int64_t chunk) const { return int(std::min<int64_t>(kChunk, arguments_.length - chunk * kChunk)); }
  Vec* state(int64_t batch, int64_t chunk, int64_t block) const {
    const int64_t kept = arguments_.keep_states ? chunks_ + 1 : 2, slot = arguments_.keep_states ? chunk : chunk % 2;
    return reinterpret_cast<Vec*>(arguments_.states_data) + ((batch * kept + slot) * blocks_ + block) * N_;
  }
  const uint8_t* start(int64_t batch, int64_t chunk) const {
    if (!arguments_.document_start) return nullptr;
    const uint8_t* p = arguments_.document_start + batch * arguments_.length + chunk * kChunk;
    for (int t = 0; t < steps(chunk); ++t)
      if (p[t]) return p;
    return nullptr;
  }
  static Vec optional(const float* p, int64_t block, int lanes) { return p ? load(p + block * kLanes, lanes) : Vec{}; }

  void load_chunk(int64_t batch, int64_t chunk) {
    for (int t = 0; t < steps(chunk); ++t) {
      const T* B = arguments_.B.as<T>().at(batch, chunk * kChunk + t);
      const T* C = arguments_.C.as<T>().at(batch, chunk * kChunk + t);
      for (int64_t n = 0; n < N_; ++n) B_[t * N_ + n] = scalar(B[n]), C_[t * N_ + n] = scalar(C[n]);
    }
    start_ = start(batch, chunk);
  }

  void load_block(int64_t batch, int64_t chunk, int64_t block, Block& x) const {
    const int lanes = this->lanes(block);
    const Vec bias = optional(arguments_.delta_bias, block, lanes);
    for (int t = 0; t < steps(chunk); ++t) {
      const int64_t row = chunk * kChunk + t;
      const T *delta = delta_.at(batch, row) + block * kLanes, *u = u_.at(batch, row) + block * kLanes;
      prefetch_next(delta), prefetch_next(u);
      if (z_.data) prefetch_next(z_.at(batch, row) + block * kLanes);
      const Vec raw = load(delta, lanes) + bias;
      const Softplus step = arguments_.softplus ? softplus(raw) : Softplus{raw, splat(1.0f)};
      x.u[t] = load(u, lanes);
      x.dt[t] = step.value, x.slope[t] = step.slope;
      x.dtu[t] = x.dt[t] * x.u[t];
      x.y[t] = Vec{};
    }
  }

  template <int Tile>
  void advance(Block& x, int steps, int64_t n, const Vec* rate, Vec* state) const {
    Vec decays[kChunk * Tile];
    decay_tile<Tile>(x, steps, rate + n, start_, decays);
    scan_tile<Tile, false>(x, steps, B_ + n, C_ + n, N_, decays, state + n, x.y, nullptr);
  }

  void forward(int64_t batch, int64_t chunk, int64_t block, int64_t local) const {
    Block x;
    load_block(batch, chunk, block, x);
    Vec* next = state(batch, chunk + 1, block);
    std::memcpy(next, state(batch, chunk, block), N_ * sizeof(Vec));
    const Vec* rate = rate_ + local * N_;
    int64_t n = 0;
    for (; n + kTile <= N_; n += kTile)
      advance<kTile>(x, steps(chunk), n, rate, next);
    for (; n < N_; ++n) advance<1>(x, steps(chunk), n, rate, next);
    const int lanes = this->lanes(block);
    const Vec D = optional(arguments_.D, block, lanes);
    for (int t = 0; t < steps(chunk); ++t) {
      const int64_t row = chunk * kChunk + t;
      Vec out = x.y[t] + D * x.u[t];
      if (z_.data) {
        const Vec z = load(z_.at(batch, row) + block * kLanes, lanes);
        out *= z * sigmoid(z);
      }
      store(out_.at(batch, row) + block * kLanes, out, lanes);
    }
  }

  template <int Tile>
  void recompute_and_differentiate(Block& x, Gradients& grad, int steps, int64_t n, const Vec* before, const Vec* A,
                                   const Vec* rate, Vec* carry, Vec* grad_A, Vec* grad_B, Vec* grad_C) const {
    Vec decays[kChunk * Tile], states[kChunk * Tile], h[Tile];
    for (int i = 0; i < Tile; ++i) h[i] = before[n + i];
    decay_tile<Tile>(x, steps, rate + n, start_, decays);
    scan_tile<Tile, true>(x, steps, B_ + n, C_ + n, N_, decays, h, x.y, states);
    backward_tile<Tile>(x, grad, steps, B_ + n, C_ + n, N_, A + n, decays, states, h, carry + n, grad_A + n, grad_B + n,
                        grad_C + n);
  }

  void run_backward(int64_t batch, int64_t group, int64_t first, int64_t last) {
    Vec* grad_B = new Vec[kChunk * N_];
    Vec* grad_C = new Vec[kChunk * N_];
    for (int64_t chunk = chunks_ - 1; chunk >= 0; --chunk) {
      load_chunk(batch, chunk);
      std::memset(static_cast<void*>(grad_B), 0, kChunk * N_ * sizeof(Vec));
      std::memset(static_cast<void*>(grad_C), 0, kChunk * N_ * sizeof(Vec));
      for (int64_t block = first; block < last; ++block) backward(batch, chunk, block, block - first, grad_B, grad_C);
      const int64_t offset = ((batch * arguments_.groups + group) * arguments_.length + chunk * kChunk) * N_;
      for (int64_t i = 0; i < steps(chunk) * N_; ++i) {
        arguments_.grad_B[offset + i] = sum(grad_B[i]);
        arguments_.grad_C[offset + i] = sum(grad_C[i]);
      }
    }
    delete[] grad_B, delete[] grad_C;
  }

  void backward(int64_t batch, int64_t chunk, int64_t block, int64_t local, Vec* grad_B, Vec* grad_C) const {
    const int lanes = this->lanes(block), steps = this->steps(chunk);
    const int64_t first_channel = block * kLanes;
    Block x;
    Gradients grad;
    load_block(batch, chunk, block, x);
    const Rows<T> grad_out = arguments_.grad_out.as<T>();
    for (int t = 0; t < steps; ++t) {
      const int64_t row = chunk * kChunk + t;
      const T* out = grad_out.at(batch, row) + first_channel;
      prefetch_next(out);
      grad.y[t] = load(out, lanes);
      if (z_.data) {
        const Vec z = load(z_.at(batch, row) + first_channel, lanes), gate = sigmoid(z);
        grad.z[t] = grad.y[t] * gate * (1.0f + z * (1.0f - gate));
        grad.y[t] *= z * gate;
      }
      grad.dt[t] = grad.dtu[t] = Vec{};
    }
    const Vec* before = state(batch, chunk, block);
    const Vec *A = A_ + local * N_, *rate = rate_ + local * N_;
    Vec* carry = reinterpret_cast<Vec*>(arguments_.grad_state) + (batch * blocks_ + block) * N_;
    Vec* grad_A = reinterpret_cast<Vec*>(arguments_.grad_A) + (batch * blocks_ + block) * N_;
    int64_t n = 0;
    for (; n + kTile <= N_; n += kTile)
      recompute_and_differentiate<kTile>(x, grad, steps, n, before, A, rate, carry, grad_A, grad_B, grad_C);
    for (; n < N_; ++n)
      recompute_and_differentiate<1>(x, grad, steps, n, before, A, rate, carry, grad_A, grad_B, grad_C);

    const Vec D = optional(arguments_.D, block, lanes);
    Vec grad_D = {}, grad_bias = {};
    for (int t = 0; t < steps; ++t) {
      const int64_t row = chunk * kChunk + t;
      if (z_.data)
        store(arguments_.grad_z.as<T>().at(batch, row) + first_channel, grad.z[t] * (x.y[t] + D * x.u[t]), lanes);
      const Vec grad_delta = (grad.dt[t] + grad.dtu[t] * x.u[t]) * x.slope[t];
      store(arguments_.grad_delta.as<T>().at(batch, row) + first_channel, grad_delta, lanes);
      store(arguments_.grad_u.as<T>().at(batch, row) + first_channel, grad.y[t] * D + grad.dtu[t] * x.dt[t], lanes);
      grad_D += grad.y[t] * x.u[t];
      grad_bias += grad_delta;
    }
    const int64_t channel = batch * arguments_.channels + first_channel;
    if (arguments_.grad_D) store(arguments_.grad_D + channel, load(arguments_.grad_D + channel, lanes) + grad_D, lanes);
    if (arguments_.grad_delta_bias)
      store(arguments_.grad_delta_bias + channel, load(arguments_.grad_delta_bias + channel, lanes) + grad_bias, lanes);
  }

  const SelectiveScanArguments& arguments_;
  const Rows<T> u_, delta_, z_, out_;
  const int64_t N_, blocks_, chunks_;
  const bool backward_;
  float *B_ = nullptr, *C_ = nullptr;  // this chunk's, (steps, N)
  Vec *A_ = nullptr, *rate_ = nullptr;  // A and A log2(e), (blocks of the group, N, lanes)
  const uint8_t* start_ = nullptr;
};

void dispatch(const SelectiveScanArguments& arguments, bool backward) {
  with_activation_type(arguments.bfloat16, [&](auto activation) {
    run_tasks(arguments.batch * arguments.groups, arguments.threads, [&](int64_t task) {
      SelectiveScan<decltype(activation)>(arguments, backward).run(task / arguments.groups, task % arguments.groups);
    });
  });
}

}  // namespace

extern "C" {
int mambabyte_selective_scan_chunk() { return kChunk; }
int mambabyte_selective_scan_lanes() { return kLanes; }
int mambabyte_selective_scan_arguments_size() { return sizeof(SelectiveScanArguments); }
void mambabyte_selective_scan_forward(const SelectiveScanArguments* a) { dispatch(*a, false); }
void mambabyte_selective_scan_backward(const SelectiveScanArguments* a) { dispatch(*a, true); }
}
}  // namespace mambabyte
