// The sums over blocks that end the backward pass, each in a fixed order.
#pragma once
#include "selective_scan.cuh"

// dB and dC of a launch's steps. A thread adds up LANE_STATES neighbours, which are all of B or all of C.
DEVICE void sum_columns(const Arguments& p) {
  constexpr int VECTORS = 2 * STATES / LANE_STATES;
  const int64 rows = (p.end_tile - p.first_tile) * TILE;
  const int64 i = static_cast<int64>(blockIdx.x) * THREADS + threadIdx.x;
  const int64 batch = i / (rows * VECTORS), row = i / VECTORS % rows, t = p.first_tile * TILE + row;
  if (batch >= p.batch || t >= p.length) return;
  const int vector = i % VECTORS, n = vector / 2 * LANE_STATES;
  const float* from = p.partial + (batch * p.channel_blocks * rows + row) * 2 * STATES + vector * LANE_STATES;
  States sum = load_states(from);
  for (int64 block = 1; block < p.channel_blocks; block++) {
    const States more = load_states(from + block * rows * 2 * STATES);
#pragma unroll
    for (int j = 0; j < LANE_STATES; j++) sum.of[j] += more.of[j];
  }
  Element* to = (vector % 2 ? p.grad_C : p.grad_B) + (batch * p.length + t) * p.states;
#pragma unroll
  for (int j = 0; j < LANE_STATES; j++)
    if (n + j < p.states) store(to + n + j, sum.of[j]);
}

// The gradients of A, D and the bias from those of each batch element and span.
DEVICE void sum_parameters(const Arguments& p) {
  const int64 matrix = p.channels * STATES, width = parameters_width(p);
  const int64 i = static_cast<int64>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= width) return;
  float sum = 0;
  for (int64 row = 0; row < p.batch * p.spans; row++) sum += p.parameters[row * width + i];
  if (i < matrix) {
    if (i % STATES < p.states) p.grad_A[i / STATES * p.states + i % STATES] = sum;
  } else {
    const int64 channel = (i - matrix) % even_channels(p);
    float* to = i - matrix < even_channels(p) ? p.grad_D : p.grad_delta_bias;
    if (to && channel < p.channels) to[channel] = sum;
  }
}

// The first row of blocks has one kind, the second, if there is one, the other.
extern "C" __global__ void __launch_bounds__(THREADS) selective_scan_sums(const __grid_constant__ Arguments p) {
  if (blockIdx.y == 0) sum_columns(p);
  else sum_parameters(p);
}
