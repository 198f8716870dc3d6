// The forward pass. A block takes its channels through its tiles in order. Threads change roles: elementwise work
// has two channels of every ROWS-th step in a thread; the recurrence has one channel in LANES lanes, with
// LANE_STATES states in registers, and walks through time.
#pragma once
#include "selective_scan.cuh"

struct alignas(16) ForwardShared {
  Element u[2][TILE * CHANNELS], delta[2][TILE * CHANNELS], z[2][TILE * CHANNELS];
  alignas(16) float B[TILE * STATES], C[TILE * STATES];
  alignas(16) StepRow steps[TILE];  // (dt, dt u)
  ValueRow y[TILE];
  alignas(16) float reset[TILE], bias[CHANNELS], D[CHANNELS];
  Starts starts;
};

// GROUP steps of the recurrence from step t0 on; the channel's lanes share the outputs: this lane keeps the one of
// its step.
DEVICE float scan_group(const ForwardShared& s, int t0, const Place& at, const States& A, States& h) {
  const float4 resets = *reinterpret_cast<const float4*>(&s.reset[t0]);
  const float reset[GROUP] = {resets.x, resets.y, resets.z, resets.w};
  const StepRow* rows = &s.steps[t0];
  const float *B = &s.B[t0 * STATES + at.lane * LANE_STATES], *C = &s.C[t0 * STATES + at.lane * LANE_STATES];
  float y[GROUP];
#pragma unroll
  for (int i = 0; i < GROUP; i++) {
    const float2 x = rows[i][at.channel];
    const States b = load_states(B + i * STATES), c = load_states(C + i * STATES);
    y[i] = 0;
#pragma unroll
    for (int j = 0; j < LANE_STATES; j++) {
      h.of[j] = fmaf(exp2_approximate(fmaf(x.x, A.of[j], reset[i])), h.of[j], x.y * b.of[j]);
      y[i] = fmaf(h.of[j], c.of[j], y[i]);
    }
  }
  share_sums<GROUP, LANES, 1>(y, at.lane);
  return y[0];
}

// Before the recurrence: step sizes, and what they scale.
DEVICE void prepare(const Arguments& p, ForwardShared& s, int k, int steps) {
  const Pair mine = find_pair();
  const float2 bias = load_two(&s.bias[mine.pair]);
  for_steps(mine, [&](int t) {
    const int place = t * CHANNELS + mine.pair;
    float2 slope, dt = step_sizes(p, load_two(&s.delta[k][place]), bias, slope);
    if (t >= steps) dt = make_float2(0.f, 0.f);  // so that the state stays as it is
    store_steps(s.steps, t, mine.pair, dt, load_two(&s.u[k][place]));
  });
}

// After it: the skip connection and the gate.
template <bool WHOLE>
DEVICE void finish(const Arguments& p, const ForwardShared& s, const Place& at, int k, int tile, int steps) {
  const Pair mine = find_pair();
  const bool even = p.channels % 2 == 0;
  const float2 D = load_two(&s.D[mine.pair]);
  Element* row = p.out + offset(at.batch, p.length, tile * TILE, p.channels);
  for_steps(mine, [&](int t) {
    const int place = t * CHANNELS + mine.pair;
    const float2 u = load_two(&s.u[k][place]);
    float2 y = load_two(&s.y[t][mine.pair]);
    y = make_float2(fmaf(D.x, u.x, y.x), fmaf(D.y, u.y, y.y));
    if (p.z.data) {
      const float2 z = load_two(&s.z[k][place]);
      y = make_float2(y.x * z.x * sigmoid(z.x), y.y * z.y * sigmoid(z.y));
    }
    if (WHOLE || t < steps) store_pair<WHOLE>(row + static_cast<int64>(t) * p.channels, at, mine.pair, y, even);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
selective_scan_forward(const __grid_constant__ Arguments p) {
  SHARED_MEMORY(ForwardShared, s);
  const Place at = find_place(p);
  const int matrix = p.channels * STATES;
  fetch_parameter(s.bias, p.delta_bias, at);
  fetch_parameter(s.D, p.D, at);
  find_starts(s.starts, p, at);
  States A = load_channel(p.A, at);
#pragma unroll
  for (int j = 0; j < LANE_STATES; j++) A.of[j] *= LOG2_E;
  States h = load_channel(p.boundary ? p.boundary + offset(at.row, 1, 0, matrix) : nullptr, at);

  Columns B, C;
  float reset;
  const auto fetch = [&](int tile) {  // u, delta and z by copies, the others through registers
    const int thread = thread_number(), steps = steps_in_tile(p, tile), k = tile & 1;
    fetch_tile(s.u[k], s.starts.u, p.u, p, at, thread, tile, steps);
    fetch_tile(s.delta[k], s.starts.delta, p.delta, p, at, thread, tile, steps);
    if (p.z.data) fetch_tile(s.z[k], s.starts.z, p.z, p, at, thread, tile, steps);
    B = load_columns(s.starts.B, p.B, p, thread, tile, steps);
    C = load_columns(s.starts.C, p.C, p, thread, tile, steps);
    reset = load_reset(p, at, thread, tile, steps);
  };
  __syncthreads();  // for the addresses
  fetch(at.begin);
  for (int tile = at.begin; tile < at.end; tile++) {
    const int steps = steps_in_tile(p, tile), k = tile & 1;
    wait_for_copies();
    store_columns(s.B, B);
    store_columns(s.C, C);
    if (threadIdx.x < TILE) s.reset[threadIdx.x] = reset;
    __syncthreads();  // the tile is here, and nobody reads the one before
    if (tile + 1 < at.end) fetch(tile + 1);
    if (p.kept && tile % KEPT_TILES == 0)
      store_channel(p.kept + offset(at.batch, kept_count(p), tile / KEPT_TILES, matrix), at, h);
    prepare(p, s, k, steps);
    __syncthreads();
#pragma unroll 2
    for (int t0 = 0; t0 < TILE; t0 += GROUP) {
      const float y = scan_group(s, t0, at, A, h);
      constexpr int SAME = LANES / GROUP;  // lanes that have the same sum
      if (at.lane % SAME == 0) s.y[t0 + at.lane / SAME][at.channel] = y;
    }
    __syncthreads();
    if (is_whole(p, at, steps))
      finish<true>(p, s, at, k, tile, steps);
    else
      finish<false>(p, s, at, k, tile, steps);
  }
  if (p.last && blockIdx.z == gridDim.z - 1) store_channel(p.last + offset(at.batch, 1, 0, matrix), at, h);
}
