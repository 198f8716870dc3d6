// Where batch and channels are too few to fill a device, time is cut into spans. Each is first scanned from zero
// (carry), forwards or, for the gradient, backwards; combine then finds what enters each span; and the
// forward or backward pass runs over all spans at once.
#pragma once
#include "selective_scan.cuh"

struct alignas(16) CarryShared {
  Element delta[TILE * CHANNELS], input[TILE * CHANNELS], z[TILE * CHANNELS];  // input: u, or the gradient of out
  alignas(16) float column[TILE * STATES];                                     // B, or C
  alignas(16) StepRow steps[TILE];
  alignas(16) float reset[TILE], bias[CHANNELS];
  Starts starts;
};

template <bool BACKWARD>
DEVICE void scan_carry(const Arguments& p) {
  SHARED_MEMORY(CarryShared, s);
  const Place at = find_place(p);
  fetch_parameter(s.bias, p.delta_bias, at);
  find_starts(s.starts, p, at);
  __syncthreads();  // for the addresses
  const bool gated = BACKWARD && p.z.data != nullptr;
  const int matrix = p.channels * STATES;
  States A = load_channel(p.A, at), carry{}, decay;
#pragma unroll
  for (int j = 0; j < LANE_STATES; j++) {
    A.of[j] *= LOG2_E;
    decay.of[j] = 1;
  }
  for (int k = 0; k < at.end - at.begin; k++) {
    const int tile = BACKWARD ? at.end - 1 - k : at.begin + k;
    const int thread = thread_number(), steps = steps_in_tile(p, tile);
    fetch_tile(s.delta, s.starts.delta, p.delta, p, at, thread, tile, steps);
    if (BACKWARD) {
      fetch_tile(s.input, s.starts.grad_out, p.grad_out, p, at, thread, tile, steps);
      if (gated) fetch_tile(s.z, s.starts.z, p.z, p, at, thread, tile, steps);
      store_columns(s.column, load_columns(s.starts.C, p.C, p, thread, tile, steps));
    } else {
      fetch_tile(s.input, s.starts.u, p.u, p, at, thread, tile, steps);
      store_columns(s.column, load_columns(s.starts.B, p.B, p, thread, tile, steps));
    }
    if (thread < TILE) s.reset[thread] = load_reset(p, at, thread, tile, steps);
    wait_for_copies();
    __syncthreads();
    const Pair mine = find_pair();
    const float2 bias = load_two(&s.bias[mine.pair]);
    for_steps(mine, [&](int t) {
      const int place = t * CHANNELS + mine.pair;
      float2 slope, dt = step_sizes(p, load_two(&s.delta[place]), bias, slope), x = load_two(&s.input[place]);
      if (t >= steps) dt = make_float2(0.f, 0.f);
      if (BACKWARD) {
        if (gated) {
          const float2 z = load_two(&s.z[place]);
          x = make_float2(x.x * z.x * sigmoid(z.x), x.y * z.y * sigmoid(z.y));
        }
        *reinterpret_cast<float4*>(&s.steps[t][mine.pair]) = make_float4(dt.x, x.x, dt.y, x.y);
      } else {
        store_steps(s.steps, t, mine.pair, dt, x);
      }
    });
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < TILE; i++) {
      const int t = BACKWARD ? TILE - 1 - i : i;
      const float2 x = s.steps[t][at.channel];
      const States column = load_states(&s.column[t * STATES + at.lane * LANE_STATES]);
      const float reset = s.reset[t];
#pragma unroll
      for (int j = 0; j < LANE_STATES; j++) {
        const float a = exp2_approximate(fmaf(x.x, A.of[j], reset)), update = x.y * column.of[j];
        carry.of[j] = BACKWARD ? a * (carry.of[j] + update) : fmaf(a, carry.of[j], update);
        decay.of[j] *= a;
      }
    }
    __syncthreads();
  }
  store_channel(p.carry + offset(at.row, 1, 0, matrix), at, carry);
  store_channel(p.decay + offset(at.row, 1, 0, matrix), at, decay);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
selective_scan_carry_forward(const __grid_constant__ Arguments p) {
  scan_carry<false>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2)
selective_scan_carry_backward(const __grid_constant__ Arguments p) {
  scan_carry<true>(p);
}

// Turns each span's carry from zero into what enters it. A thread has one state of one channel; `boundary` is what
// enters the first span (backward: the last) of (B, D, STATES).
template <bool BACKWARD>
DEVICE void combine_spans(const Arguments& p) {
  const int64 matrix = p.channels * STATES;
  const int64 i = static_cast<int64>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= p.batch * matrix) return;
  const int64 first = i / matrix * p.spans * matrix + i % matrix;
  float entering = p.boundary ? p.boundary[i] : 0.f;
  for (int64 k = 0; k < p.spans; k++) {
    const int64 place = first + (BACKWARD ? p.spans - 1 - k : k) * matrix;
    const float leaving = fmaf(p.decay[place], entering, p.carry[place]);
    p.carry[place] = entering;
    entering = leaving;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
selective_scan_combine_forward(const __grid_constant__ Arguments p) {
  combine_spans<false>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS)
selective_scan_combine_backward(const __grid_constant__ Arguments p) {
  combine_spans<true>(p);
}
