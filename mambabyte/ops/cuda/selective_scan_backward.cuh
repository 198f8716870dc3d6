// The backward pass. A block takes its tiles from the last to the first. Where it comes to a group of KEPT_TILES, it
// sweeps the group's tiles but the last forwards from the state that the forward pass kept, and saves the state before
// each. It sweeps the tile itself, saving the state before every SUB steps; then it walks back over SUB steps at a time,
// whose decays and states are computed again into registers. With g[t] = gradient of y, as in docs/kernels.md:
//
//   dh[t] = C[t] g[t] + a[t+1] dh[t+1]     dC[t] = sum_d g[t] h[t]     dB[t] = sum_d dh[t] dt[t] u[t]
//   e[t]  = dh[t] a[t] h[t-1]              ddt[t] = sum_n e[t] A + dh[t] B[t] u[t]     dA = sum_t e[t] dt[t]
//
// dB and dC are summed over the channels of a warp by shuffles, over warps in shared memory, and over blocks by
// selective_scan_sums: no atomic additions, so that the result has the same bits every time.
#pragma once
#include "selective_scan.cuh"

constexpr int SUB = 8, SUBS = TILE / SUB;
// Steps whose partial sums of dB and dC wait in shared memory: 16 KB of them with up to 64 states, else 32 KB.
constexpr int FLUSH = STATES <= 8 ? 32 : STATES == 16 ? 16 : STATES == 32 ? 8 : 4;

struct alignas(16) BackwardShared {
  Element u[TILE * CHANNELS], delta[TILE * CHANNELS], z[TILE * CHANNELS], grad_out[TILE * CHANNELS];
  alignas(16) float B[TILE * STATES], C[TILE * STATES];
  alignas(16) StepRow steps[TILE];  // (dt, dt u), then the gradients of both
  alignas(16) ValueRow y[TILE];     // the gradient of y, then y
  States saved[SUBS - 1][THREADS];  // the state before each SUB steps but the last
  alignas(16) float partial[WARPS][FLUSH][2 * STATES];
  alignas(16) float reset[TILE], bias[CHANNELS], D[CHANNELS];
  Starts starts;
  float2 grad_D[ROWS][PAIRS], grad_bias[ROWS][PAIRS];  // each thread's own sums: the registers are full
};

// What a lane carries from step to step.
struct Carried {
  States A, gradient, grad_A;  // the rates times log2(e); the gradient of the state; that of the rates
};

// Adds up the warps' sums of dB and dC of FLUSH steps from step t on, and writes them.
DEVICE void flush(const Arguments& p, BackwardShared& s, const Place& at, int tile, int t, int steps) {
  constexpr int VECTORS = 2 * STATES / LANE_STATES;  // of a step
  const int rows = (p.end_tile - p.first_tile) * TILE, row = (tile - p.first_tile) * TILE + t;
  float* to = p.partial + offset(at.batch * p.channel_blocks + at.block, rows, row, 2 * STATES);
  __syncthreads();
  share_work<FLUSH * VECTORS>(thread_number(), [&](int i) {
    const float* from = &s.partial[0][0][0] + i * LANE_STATES;
    States sum = load_states(from);
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) {
      const States more = load_states(from + warp * FLUSH * 2 * STATES);
#pragma unroll
      for (int j = 0; j < LANE_STATES; j++) sum.of[j] += more.of[j];
    }
    if (t + i / VECTORS < steps) store_states(to + i * LANE_STATES, sum);
  });
  __syncthreads();
}

// The gradients of SUB steps of a tile, from step `first` on, where the state is `before`.
DEVICE void walk_back(const Arguments& p, BackwardShared& s, const Place& at, int tile, int first, int steps,
                      const States& before, Carried& carried) {
  constexpr int SHARE = 2 * LANE_STATES / WARP_CHANNELS, OWN = SHARE > 0 ? SHARE : 1;
  constexpr int SAME_STATES = SHARE > 0 ? 1 : WARP_CHANNELS / (2 * LANE_STATES), SAME_STEP = LANES / GROUP;
  const int warp = threadIdx.x / 32, place = threadIdx.x % 32 / LANES, column = at.lane * LANE_STATES;
  const float *rows_B = &s.B[first * STATES + column], *rows_C = &s.C[first * STATES + column];
  const float* resets = &s.reset[first];
  const StepRow* rows = &s.steps[first];
  States decay[SUB], after[SUB];
#pragma unroll
  for (int i = 0; i < SUB; i++) {
    const float2 x = rows[i][at.channel];
    const States B = load_states(rows_B + i * STATES);
    const float reset = resets[i];
#pragma unroll
    for (int j = 0; j < LANE_STATES; j++) {
      decay[i].of[j] = exp2_approximate(fmaf(x.x, carried.A.of[j], reset));
      after[i].of[j] = fmaf(decay[i].of[j], i ? after[i - 1].of[j] : before.of[j], x.y * B.of[j]);
    }
  }
#pragma unroll
  for (int group = SUB / GROUP - 1; group >= 0; group--) {
    float y[GROUP], grad_update[GROUP], grad_step[GROUP];
#pragma unroll
    for (int r = GROUP - 1; r >= 0; r--) {
      const int i = group * GROUP + r, t = first + i;
      const float2 x = rows[i][at.channel];
      const float grad_y = s.y[t][at.channel];
      const States B = load_states(rows_B + i * STATES), C = load_states(rows_C + i * STATES);
      float both[2 * LANE_STATES];  // of B, of C
      y[r] = grad_update[r] = grad_step[r] = 0;
#pragma unroll
      for (int j = 0; j < LANE_STATES; j++) {
        float g = fmaf(grad_y, C.of[j], carried.gradient.of[j]);
        y[r] = fmaf(after[i].of[j], C.of[j], y[r]);
        both[j] = g * x.y;
        both[LANE_STATES + j] = grad_y * after[i].of[j];
        grad_update[r] = fmaf(g, B.of[j], grad_update[r]);
        g *= decay[i].of[j];
        carried.gradient.of[j] = g;
        const float grad_exponent = g * (i ? after[i - 1].of[j] : before.of[j]);
        grad_step[r] = fmaf(grad_exponent, carried.A.of[j], grad_step[r]);
        carried.grad_A.of[j] = fmaf(grad_exponent, x.x, carried.grad_A.of[j]);
      }
      share_sums<2 * LANE_STATES, WARP_CHANNELS, LANES>(both, place);
      if (place % SAME_STATES == 0) {
        float* to = &s.partial[warp][FLUSH < SUB ? i % FLUSH : first % FLUSH + i][2 * column + place * 2 * LANE_STATES / WARP_CHANNELS];
#pragma unroll
        for (int k = 0; k < OWN; k++) to[k] = both[k];
      }
    }
    share_sums<GROUP, LANES, 1>(y, at.lane);
    share_sums<GROUP, LANES, 1>(grad_step, at.lane);
    share_sums<GROUP, LANES, 1>(grad_update, at.lane);
    __syncwarp();  // the channel's lanes have read what is overwritten
    if (at.lane % SAME_STEP == 0) {
      const int t = first + group * GROUP + at.lane / SAME_STEP;
      s.y[t][at.channel] = y[0];
      s.steps[t][at.channel] = make_float2(grad_step[0] * (1 / LOG2_E), grad_update[0]);
    }
    if ((first + group * GROUP) % FLUSH == 0) flush(p, s, at, tile, first + group * GROUP, steps);
  }
}

// The states of SUB steps from step `first` on.
DEVICE void sweep(const BackwardShared& s, int first, const Place& at, const States& A, States& h) {
  const float* columns = &s.B[first * STATES + at.lane * LANE_STATES];
  const float* resets = &s.reset[first];
  const StepRow* rows = &s.steps[first];
#pragma unroll
  for (int i = 0; i < SUB; i++) {
    const float2 x = rows[i][at.channel];
    const States B = load_states(columns + i * STATES);
    const float reset = resets[i];
#pragma unroll
    for (int j = 0; j < LANE_STATES; j++)
      h.of[j] = fmaf(exp2_approximate(fmaf(x.x, A.of[j], reset)), h.of[j], x.y * B.of[j]);
  }
}

// Where this lane's state before a tile waits for the tile's turn: in the memory that the tile's partial sums take then.
DEVICE float* waiting_state(const Arguments& p, const Place& at, int tile) {
  static_assert(THREADS * LANE_STATES <= TILE * 2 * STATES);
  const int tiles = p.end_tile - p.first_tile;
  return p.partial + offset(at.batch * p.channel_blocks + at.block, tiles, tile - p.first_tile, TILE * 2 * STATES) +
         threadIdx.x * LANE_STATES;
}

// The states before the tiles of a group, up to `tile`, from the one that the forward pass kept.
DEVICE void restore(const Arguments& p, BackwardShared& s, const Place& at, int tile, const States& A) {
  const int first = tile - tile % KEPT_TILES;
  const Pair mine = find_pair();
  States h = load_channel(p.kept + offset(at.batch, kept_count(p), first / KEPT_TILES, p.channels * STATES), at);
#pragma unroll 1
  for (int earlier = first; earlier < tile; earlier++) {  // whole tiles, as they are not the last
    const int thread = thread_number();
    if (earlier >= at.begin) store_states(waiting_state(p, at, earlier), h);
    fetch_tile(s.u, s.starts.u, p.u, p, at, thread, earlier, TILE);
    fetch_tile(s.delta, s.starts.delta, p.delta, p, at, thread, earlier, TILE);
    {
      const Columns B = load_columns(s.starts.B, p.B, p, thread, earlier, TILE);
      const float reset = load_reset(p, at, thread, earlier, TILE);
      store_columns(s.B, B);
      if (thread < TILE) s.reset[thread] = reset;
    }
    wait_for_copies();
    __syncthreads();
    const float2 bias = load_two(&s.bias[mine.pair]);
    for_steps(mine, [&](int t) {
      const int place = t * CHANNELS + mine.pair;
      float2 slope;
      const float2 dt = step_sizes(p, load_two(&s.delta[place]), bias, slope);
      store_steps(s.steps, t, mine.pair, dt, load_two(&s.u[place]));
    });
    __syncthreads();
#pragma unroll 1
    for (int sub = 0; sub < SUBS; sub++) sweep(s, sub * SUB, at, A, h);
    __syncthreads();  // before the next tile overwrites this one
  }
  store_states(waiting_state(p, at, tile), h);
}

// silu(z) and its derivative; 1 and 0 without a gate.
struct Gate {
  float2 open, slope;
};
DEVICE Gate gate(const BackwardShared& s, int place, bool gated) {
  Gate g{make_float2(1.f, 1.f), make_float2(0.f, 0.f)};
  if (gated) {
    const float2 z = load_two(&s.z[place]), open = make_float2(sigmoid(z.x), sigmoid(z.y));
    g.open = make_float2(z.x * open.x, z.y * open.y);
    g.slope = make_float2(open.x * fmaf(z.x, 1 - open.x, 1.f), open.y * fmaf(z.y, 1 - open.y, 1.f));
  }
  return g;
}

// Before the recurrence: step sizes, what they scale, and the gradient of y.
DEVICE void prepare(const Arguments& p, BackwardShared& s, int steps, bool gated) {
  const Pair mine = find_pair();
  const float2 bias = load_two(&s.bias[mine.pair]);
  for_steps(mine, [&](int t) {
    const int place = t * CHANNELS + mine.pair;
    const float2 open = gate(s, place, gated).open, gradient = load_two(&s.grad_out[place]);
    float2 slope, dt = step_sizes(p, load_two(&s.delta[place]), bias, slope);
    if (t >= steps) dt = make_float2(0.f, 0.f);  // so that the state's gradient stays as it is
    store_steps(s.steps, t, mine.pair, dt, load_two(&s.u[place]));
    *reinterpret_cast<float2*>(&s.y[t][mine.pair]) = make_float2(gradient.x * open.x, gradient.y * open.y);
  });
}

// After it: the gradients of u, delta and z, and this thread's part of those of D and the bias.
template <bool WHOLE>
DEVICE void finish(const Arguments& p, BackwardShared& s, const Place& at, int tile, int steps, bool gated) {
  const Pair mine = find_pair();
  const bool even = p.channels % 2 == 0;
  const int64 row = offset(at.batch, p.length, tile * TILE, p.channels);
  const float2 bias = load_two(&s.bias[mine.pair]), D = load_two(&s.D[mine.pair]);
  float2 &grad_bias = s.grad_bias[mine.time][mine.pair / 2], &grad_D = s.grad_D[mine.time][mine.pair / 2];
  float2 sum_bias = grad_bias, sum_D = grad_D;
  for_steps(mine, [&](int t) {
    if (!WHOLE && t >= steps) return;
    const int place = t * CHANNELS + mine.pair;
    const int64 to = row + static_cast<int64>(t) * p.channels;
    const float4 x = *reinterpret_cast<const float4*>(&s.steps[t][mine.pair]);  // gradients of dt and of dt u
    const float2 u = load_two(&s.u[place]), gradient = load_two(&s.grad_out[place]);
    const Gate g = gate(s, place, gated);
    const float2 grad_y = make_float2(gradient.x * g.open.x, gradient.y * g.open.y);
    float2 slope;
    const float2 dt = step_sizes(p, load_two(&s.delta[place]), bias, slope);
    const float2 grad_u = make_float2(fmaf(x.y, dt.x, D.x * grad_y.x), fmaf(x.w, dt.y, D.y * grad_y.y));
    const float2 grad_delta = make_float2(fmaf(x.y, u.x, x.x) * slope.x, fmaf(x.w, u.y, x.z) * slope.y);
    store_pair<WHOLE>(p.grad_u + to, at, mine.pair, grad_u, even);
    store_pair<WHOLE>(p.grad_delta + to, at, mine.pair, grad_delta, even);
    if (gated) {
      const float2 y = load_two(&s.y[t][mine.pair]);
      const float2 grad_z = make_float2(gradient.x * fmaf(D.x, u.x, y.x) * g.slope.x,
                                        gradient.y * fmaf(D.y, u.y, y.y) * g.slope.y);
      const int64 to_z = offset(at.batch, p.length, tile * TILE + t, p.grad_z_stride);
      store_pair<WHOLE>(p.grad_z + to_z, at, mine.pair, grad_z, even);
    }
    sum_bias = make_float2(sum_bias.x + grad_delta.x, sum_bias.y + grad_delta.y);
    sum_D = make_float2(fmaf(grad_y.x, u.x, sum_D.x), fmaf(grad_y.y, u.y, sum_D.y));
  });
  grad_bias = sum_bias;
  grad_D = sum_D;
}

// Sums over the block's rows of threads: written to (D) or added to it.
DEVICE void sum_rows(const Arguments& p, const float2* sums, const Place& at, float* to) {
  const int channel = threadIdx.x;
  if (channel >= at.count) return;
  float sum = p.accumulate ? to[channel] : 0.f;
  for (int row = 0; row < ROWS; row++) sum += reinterpret_cast<const float*>(sums + row * PAIRS)[channel];
  to[channel] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
selective_scan_backward(const __grid_constant__ Arguments p) {
  SHARED_MEMORY(BackwardShared, s);
  const Place at = find_place(p);
  const bool gated = p.z.data != nullptr;
  const int matrix = p.channels * STATES;
  fetch_parameter(s.bias, p.delta_bias, at);
  fetch_parameter(s.D, p.D, at);
  find_starts(s.starts, p, at);
  (&s.grad_D[0][0])[threadIdx.x] = (&s.grad_bias[0][0])[threadIdx.x] = make_float2(0.f, 0.f);
  Carried carried{load_channel(p.A, at),
                  load_channel(p.boundary ? p.boundary + offset(at.row, 1, 0, matrix) : nullptr, at), States{}};
#pragma unroll
  for (int j = 0; j < LANE_STATES; j++) carried.A.of[j] *= LOG2_E;

  __syncthreads();  // for the addresses
  for (int tile = at.end - 1; tile >= at.begin; tile--) {
    if (tile == at.end - 1 || tile % KEPT_TILES == KEPT_TILES - 1) restore(p, s, at, tile, carried.A);
    const int thread = thread_number(), steps = steps_in_tile(p, tile);
    States h = load_states(waiting_state(p, at, tile));
    fetch_tile(s.u, s.starts.u, p.u, p, at, thread, tile, steps);
    fetch_tile(s.delta, s.starts.delta, p.delta, p, at, thread, tile, steps);
    fetch_tile(s.grad_out, s.starts.grad_out, p.grad_out, p, at, thread, tile, steps);
    if (gated) fetch_tile(s.z, s.starts.z, p.z, p, at, thread, tile, steps);
    {  // all loads before the first store, which waits for one
      const Columns B = load_columns(s.starts.B, p.B, p, thread, tile, steps);
      const Columns C = load_columns(s.starts.C, p.C, p, thread, tile, steps);
      const float reset = load_reset(p, at, thread, tile, steps);
      store_columns(s.B, B);
      store_columns(s.C, C);
      if (thread < TILE) s.reset[thread] = reset;
    }
    wait_for_copies();
    __syncthreads();
    if (tile > at.begin) {
      prefetch_tile(s.starts.u, p.u, at, thread, tile - 1);
      prefetch_tile(s.starts.delta, p.delta, at, thread, tile - 1);
      prefetch_tile(s.starts.grad_out, p.grad_out, at, thread, tile - 1);
      if (gated) prefetch_tile(s.starts.z, p.z, at, thread, tile - 1);
    }
    prepare(p, s, steps, gated);
    __syncthreads();
#pragma unroll 1
    for (int sub = 0; sub < SUBS - 1; sub++) {
      s.saved[sub][threadIdx.x] = h;
      sweep(s, sub * SUB, at, carried.A, h);
    }
#pragma unroll 1
    for (int sub = SUBS - 1; sub >= 0; sub--) {
      if (sub < SUBS - 1) h = s.saved[sub][threadIdx.x];
      walk_back(p, s, at, tile, sub * SUB, steps, h, carried);
    }
    // The last thing in walk_back was a barrier.
    if (is_whole(p, at, steps))
      finish<true>(p, s, at, tile, steps, gated);
    else
      finish<false>(p, s, at, tile, steps, gated);
    __syncthreads();  // before the next tile overwrites this one
  }
  if (p.last && blockIdx.z == 0)
    store_channel(p.last + offset(at.batch, 1, 0, matrix), at, carried.gradient);
  float* row = p.parameters + offset(at.row, 1, 0, parameters_width(p));
  const States before = load_channel(p.accumulate ? row : nullptr, at);
#pragma unroll
  for (int j = 0; j < LANE_STATES; j++) carried.grad_A.of[j] += before.of[j];
  store_channel(row, at, carried.grad_A);
  sum_rows(p, &s.grad_D[0][0], at, row + matrix + at.first);
  sum_rows(p, &s.grad_bias[0][0], at, row + matrix + even_channels(p) + at.first);
}
