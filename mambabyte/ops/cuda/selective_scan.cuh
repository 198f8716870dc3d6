// What the kernels of the selective scan share: their arguments, shapes, and loads. One compilation serves one
// number of states, STATES (8, 16, 32, 64 or 128; Python pads others), and one type of activations, ELEMENT.
#pragma once
#include "device.cuh"

using Element = ELEMENT;

constexpr int LANE_STATES = STATES < 16 ? 2 : 4;        // states in a lane's registers
constexpr int LANES = STATES / LANE_STATES;             // lanes of a channel, 4 to 32
constexpr int WARPS = 8, THREADS = 32 * WARPS;          // of a block
constexpr int WARP_CHANNELS = 32 / LANES;
constexpr int CHANNELS = WARPS * WARP_CHANNELS;         // of a block: 64 with up to 16 states
constexpr int TILE = 32;                                // steps in shared memory
constexpr int KEPT_TILES = 4;                           // forward keeps the state before every 4th tile
constexpr int GROUP = 4;                                // steps whose sums over lanes are taken together
constexpr int PAIRS = CHANNELS / 2, ROWS = THREADS / PAIRS;  // elementwise: a thread has two channels of every ROWS-th step
constexpr float LOG2_E = 1.4426950408889634f;

// A (B, L, width) tensor whose last dimension is contiguous; strides in elements.
struct Rows {
  const Element* data;
  int64 batch_stride, time_stride;
};

// A launch covers the tiles [first_tile, end_tile) in spans of span_tiles: blockIdx.x is the batch element,
// blockIdx.y the block of channels, blockIdx.z the span. Tensors that Python allocates are contiguous.
struct Arguments {
  int length, channels, states, channel_blocks, batch;  // states: N as it was before padding
  int first_tile, end_tile, span_tiles, spans;          // spans: of `boundary`, `decay` and `parameters`
  int softplus, accumulate, aligned;                    // whether to add to `parameters`; to use 16-byte copies
  int grad_z_stride, unused;                            // elements from row to row of grad_z
  Rows u, delta, z, B, C, grad_out;                       // z may be null
  const float *A, *D, *delta_bias;                        // (D, STATES); (D) or null
  const unsigned char* document_start;                    // (B, L) or null
  const float* boundary;  // (B, spans, D, STATES) or null for zero: forward, the state before each span; backward,
                          // the gradient of the state after it
  float* last;            // (B, D, STATES) or null: what is carried out of the launch's last span (backward: first)
  float* kept;            // (B, kept_count, D, STATES) or null: the state before every KEPT_TILES tiles
  Element *out, *grad_u, *grad_delta, *grad_z;  // (B, L, D)
  float* partial;         // (B, channel_blocks, launch's steps, 2 STATES): gradients of B and C, for each lane both
  float* parameters;      // (B, spans, parameters_width): gradients of A (D, STATES), of D and of the bias, each even_channels
  Element *grad_B, *grad_C;                          // (B, L, N)
  float *grad_A, *grad_D, *grad_delta_bias;          // (D, N), (D) or null
  float *carry, *decay;   // (B, spans, D, STATES): a span's result from zero, and what it multiplies its start by
};

// So that rows of `parameters` are aligned to the states of a lane.
DEVICE int even_channels(const Arguments& p) { return p.channels + p.channels % 2; }
DEVICE int parameters_width(const Arguments& p) { return p.channels * STATES + 2 * even_channels(p); }

// Calls body(i) for a thread's share of 0 .. COUNT - 1.
template <int COUNT, class Body>
DEVICE void share_work(int thread, Body body) {
#pragma unroll
  for (int k = 0; k < (COUNT + THREADS - 1) / THREADS; k++) {
    const int i = thread + k * THREADS;
    if (COUNT % THREADS == 0 || i < COUNT) body(i);
  }
}

// Which channels and tiles this block has, and which state this lane.
struct Place {
  int batch, block, first, begin, end;  // first channel; tiles [begin, end)
  int lane, channel, count;             // lane of the channel; channel in the block; channels that exist
  int row;                              // batch * spans + span
};

DEVICE Place find_place(const Arguments& p) {
  Place at;
  const int thread = threadIdx.x;
  at.batch = blockIdx.x;
  at.block = blockIdx.y;
  at.first = at.block * CHANNELS;
  at.begin = p.first_tile + blockIdx.z * p.span_tiles;
  at.end = at.begin + p.span_tiles < p.end_tile ? at.begin + p.span_tiles : p.end_tile;
  at.lane = thread % LANES;
  at.channel = thread / LANES;
  at.count = p.channels - at.first < CHANNELS ? p.channels - at.first : CHANNELS;
  at.row = at.batch * p.spans + blockIdx.z;
  return at;
}

// What this thread has in elementwise work: two channels, of which the first is `pair`, in every ROWS-th step from
// `time` on.
struct Pair {
  int pair, time;
};
DEVICE Pair find_pair() {
  const int thread = thread_number();
  return Pair{thread % PAIRS * 2, thread / PAIRS};
}
// Calls body(t) for the thread's steps of a tile.
template <class Body>
DEVICE void for_steps(const Pair& mine, Body body) {
#pragma unroll
  for (int k = 0; k < (TILE + ROWS - 1) / ROWS; k++) {
    const int t = mine.time + k * ROWS;
    if (TILE % ROWS == 0 || t < TILE) body(t);
  }
}

// How many states forward keeps.
DEVICE int kept_count(const Arguments& p) { return (p.length + KEPT_TILES * TILE - 1) / (KEPT_TILES * TILE); }

DEVICE int steps_in_tile(const Arguments& p, int tile) {
  const int left = p.length - tile * TILE;
  return left < TILE ? left : TILE;
}

// Where a (B, count, ...) tensor of rows of `width` elements has row `index` of this batch element.
DEVICE int64 offset(int batch, int count, int index, int width) {
  return (static_cast<int64>(batch) * count + index) * width;
}

// LANE_STATES neighbours, aligned to all.
struct alignas(4 * LANE_STATES) States {
  float of[LANE_STATES];
};
DEVICE States load_states(const float* from) { return *reinterpret_cast<const States*>(from); }
DEVICE void store_states(float* to, const States& states) { *reinterpret_cast<States*>(to) = states; }

// This lane's states in a (D, STATES) matrix; zero for null and for channels that do not exist.
struct LanePlace {
  int offset;
  bool exists;
};
DEVICE LanePlace find_lane(const Place& at) {
  const int thread = thread_number(), channel = thread / LANES;
  return LanePlace{(at.first + channel) * STATES + thread % LANES * LANE_STATES, channel < at.count};
}
DEVICE States load_channel(const float* matrix, const Place& at) {
  const LanePlace lane = find_lane(at);
  return matrix && lane.exists ? load_states(matrix + lane.offset) : States{};
}
DEVICE void store_channel(float* matrix, const Place& at, const States& states) {
  const LanePlace lane = find_lane(at);
  if (lane.exists) store_states(matrix + lane.offset, states);
}

// The block's part of a (D) parameter, to shared memory; zero for null and for channels that do not exist.
DEVICE void fetch_parameter(float* to, const float* vector, const Place& at) {
  const int channel = threadIdx.x;
  if (channel < CHANNELS) to[channel] = vector && channel < at.count ? vector[at.first + channel] : 0.f;
}

// Whether a tile has all steps and channels, so that nothing has to be tested.
DEVICE bool is_whole(const Arguments& p, const Place& at, int steps) {
  return steps == TILE && at.count == CHANNELS && p.channels % 2 == 0;
}
template <bool WHOLE>
DEVICE void store_pair(Element* row, const Place& at, int pair, float2 both, bool even) {
  Element* to = row + at.first + pair;
  if (WHOLE || even) {
    if (WHOLE || pair < at.count) store_two(to, both);
  } else {
    if (pair < at.count) store(to, both.x);
    if (pair + 1 < at.count) store(to + 1, both.y);
  }
}

// Where the tensors have step 0 of this block's batch element and first channel, or column. In shared memory, because
// the registers are full.
struct Starts {
  const char *u, *delta, *z, *grad_out, *B, *C;
};
DEVICE void find_starts(Starts& starts, const Arguments& p, const Place& at) {
  if (threadIdx.x != 0) return;
  const auto start = [&](const Rows& rows, int column) {
    return reinterpret_cast<const char*>(rows.data + at.batch * rows.batch_stride + column);
  };
  starts = Starts{start(p.u, at.first),        start(p.delta, at.first), start(p.z, at.first),
                  start(p.grad_out, at.first), start(p.B, 0),            start(p.C, 0)};
}
// Bytes from a step to the next; Python sees to it that 32 bits hold those of a tile.
DEVICE int step_bytes(const Rows& rows) {
  return static_cast<int>(rows.time_stride) * static_cast<int>(sizeof(Element));
}
DEVICE const char* tile_start(const char* start, const Rows& rows, int tile) {
  return start + static_cast<int64>(tile) * (TILE * step_bytes(rows));
}
DEVICE const Element* element(const char* tile, const Rows& rows, int t, int column) {
  return reinterpret_cast<const Element*>(tile + (t * step_bytes(rows) + column * static_cast<int>(sizeof(Element))));
}

// Copies a tile of a (B, L, D) tensor to shared memory, with zeros where there are no steps or channels.
DEVICE void fetch_tile(Element* to, const char* start, const Rows& rows, const Arguments& p, const Place& at, int thread,
                       int tile, int steps) {
  constexpr int EACH = 16 / sizeof(Element), PIECES = CHANNELS / EACH;
  const char* from = tile_start(start, rows, tile);
  if (p.aligned && steps == TILE && at.count == CHANNELS) {
    const SharedAddress address = shared_address(to);
    share_work<TILE * PIECES>(thread, [&](int i) {
      copy_async(address + i * 16, element(from, rows, i / PIECES, i % PIECES * EACH));
    });
  } else {
#pragma unroll 1
    for (int i = thread; i < TILE * CHANNELS; i += THREADS) {
      const int t = i / CHANNELS, c = i % CHANNELS;
      to[i] = t < steps && c < at.count ? load_global(element(from, rows, t, c)) : Element{};
    }
  }
}

// Asks the second-level cache for a whole tile of a (B, L, D) tensor that the block reads next.
DEVICE void prefetch_tile(const char* start, const Rows& rows, const Place& at, int thread, int tile) {
  constexpr int LINES = (CHANNELS * sizeof(Element) + 127) / 128, EACH = CHANNELS / LINES;
  const char* from = tile_start(start, rows, tile);
  share_work<TILE * LINES>(thread, [&](int i) {
    const int c = i % LINES * EACH;
    if (c < at.count) prefetch(element(from, rows, i / LINES, c));
  });
}

// A thread's part of a tile of B or C, on its way through registers to fp32 in shared memory.
struct Columns {
  static constexpr int EACH = TILE * STATES / THREADS;
  Element of[EACH];
};
DEVICE Element load_column(const Arguments& p, const Rows& rows, const char* from, int i, int steps) {
  const int t = i / STATES, n = i % STATES;
  return t < steps && n < p.states ? load_global(element(from, rows, t, n)) : Element{};
}
DEVICE Columns load_columns(const char* start, const Rows& rows, const Arguments& p, int thread, int tile, int steps) {
  Columns columns;
  const char* from = tile_start(start, rows, tile);
#pragma unroll
  for (int k = 0; k < Columns::EACH; k++)
    columns.of[k] = load_column(p, rows, from, thread + k * THREADS, steps);
  return columns;
}
DEVICE void store_columns(float* to, const Columns& columns) {
#pragma unroll
  for (int k = 0; k < Columns::EACH; k++) to[threadIdx.x + k * THREADS] = to_float(columns.of[k]);
}

// What the first TILE threads add to the exponent of a step's decay: -inf where a document starts, else 0.
DEVICE float load_reset(const Arguments& p, const Place& at, int t, int tile, int steps) {
  const bool starts = p.document_start && t < steps && p.document_start[offset(at.batch, p.length, tile * TILE + t, 1)];
  return starts ? __int_as_float(0xff800000) : 0.f;
}

// max(x, 0) + log1p(e) for e = exp(-|x|), with log1p(e) = 2 atanh(s) for s = e / (2 + e) <= 1/3: 1 + e would round
// small step sizes away. atanh(s) / s is a polynomial in s^2 with a relative error of 4e-9 (Remez). The slope is
// sigmoid(x).
DEVICE float softplus(float x, float& slope) {
  const float e = exp2_approximate(-fabsf(x) * LOG2_E), r = reciprocal(1 + e);
  slope = x >= 0 ? r : e * r;
  const float s = e * reciprocal(2 + e), q = s * s;
  float ratio = 0.14089168f;
  ratio = fmaf(q, ratio, 0.13980301f);
  ratio = fmaf(q, ratio, 0.20012455f);
  ratio = fmaf(q, ratio, 0.33333157f);
  ratio = fmaf(q, ratio, 1.f);
  return fmaf(2 * s, ratio, fmaxf(x, 0.f));
}
DEVICE float sigmoid(float x) { return reciprocal(1 + exp2_approximate(-x * LOG2_E)); }

// The step sizes of two channels from delta plus bias, and their derivatives.
DEVICE float2 step_sizes(const Arguments& p, float2 delta, float2 bias, float2& slope) {
  const float2 raw = make_float2(delta.x + bias.x, delta.y + bias.y);
  slope = make_float2(1.f, 1.f);
  if (!p.softplus) return raw;
  const float first = softplus(raw.x, slope.x), second = softplus(raw.y, slope.y);
  return make_float2(first, second);
}

// Sums VALUES values over a group of COUNT lanes whose numbers differ by multiples of STEP; `i` is the lane's
// place in the group. It gets its share, max(1, VALUES / COUNT) sums from i * VALUES / COUNT on, in the first
// values. Half of the values are exchanged at a time, so that it takes no more shuffles than values.
template <int VALUES, int COUNT, int STEP>
DEVICE void share_sums(float* values, int i) {
  if constexpr (COUNT > 1) {
    constexpr int DISTANCE = COUNT / 2, HALF = VALUES / 2;
    if constexpr (VALUES > 1) {
      const bool upper = i & DISTANCE;
#pragma unroll
      for (int k = 0; k < HALF; k++) {
        const float mine = upper ? values[k + HALF] : values[k], other = upper ? values[k] : values[k + HALF];
        values[k] = mine + shuffle_xor(other, DISTANCE * STEP);
      }
      share_sums<HALF, DISTANCE, STEP>(values, i);
    } else {
      values[0] += shuffle_xor(values[0], DISTANCE * STEP);
      share_sums<1, DISTANCE, STEP>(values, i);
    }
  }
}

// (dt, dt u) of a tile, and a float of each step and channel, so padded that the lanes of a warp, which write
// GROUP rows at once, meet different banks.
using StepRow = float2[CHANNELS + 4];
using ValueRow = float[CHANNELS + 8];
DEVICE void store_steps(StepRow* steps, int t, int pair, float2 dt, float2 u) {
  *reinterpret_cast<float4*>(&steps[t][pair]) = make_float4(dt.x, dt.x * u.x, dt.y, dt.y * u.y);
}
