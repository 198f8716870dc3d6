// Small matrix products whose sums stay in registers, and what arranges matrices for them.
//
// The right factor is read by vectors of its rows, and the left one number by number, with any distance between rows
// and between columns: it may be the transpose of what is in memory.
#pragma once
#include <algorithm>

#include "kernel.h"

namespace mambabyte {

static inline int64_t round_up(int64_t value, int64_t multiple) { return ceil_divide(value, multiple) * multiple; }

// Element (row, k) of the left factor is data[row * row_stride + k * step].
struct Left {
  const float* data;
  int64_t row_stride, step;
};

template <int V>
struct Tile {  // kTileRows rows of V vectors
  Vec sums[kTileRows][V];

  INLINE Tile() {
    each_sum([](Vec& sum, auto, auto) INLINE { sum = Vec{}; });
  }

  // Calls function(sum, row, vector).
  template <class Function>
  INLINE void each_sum(const Function& function) {
    each<kTileRows>([&](auto row) INLINE {
      each<V>([&](auto vector) INLINE { function(sums[row][vector], row, vector); });
    });
  }

  // Adds the product of the left factor's `count` columns and as many rows of the right one, `stride` numbers apart.
  INLINE void multiply(Left left, const float* right, int64_t stride, int64_t count) {
    Vec totals[kTileRows][V];
    each_sum([&](Vec& sum, auto row, auto vector) INLINE { totals[row][vector] = sum; });
    for (const float* end = right + count * stride; right != end; right += stride, left.data += left.step) {
      Vec values[V];
      each<V>([&](auto vector) INLINE { values[vector] = in_register(load(right + vector * kLanes, kLanes)); });
      each<kTileRows>([&](auto row) INLINE {
        const Vec factor = splat(left.data[row * left.row_stride]);
        each<V>([&](auto vector) INLINE {
          totals[row][vector] = multiply_add(factor, values[vector], totals[row][vector]);
        });
      });
    }
    each_sum([&](Vec& sum, auto row, auto vector) INLINE { sum = totals[row][vector]; });
  }

  INLINE void store_rows(float* out, int64_t stride) {
    each_sum([&](Vec& sum, auto row, auto vector) INLINE { store(out + row * stride + vector * kLanes, sum, kLanes); });
  }
};

// Calls function(first, V) for panels of V vectors, V a constant of at most kTileVectors, from `first` to `last`.
template <class Function>
INLINE static inline void panels(int64_t first, int64_t last, const Function& function) {
  for (; first + kTileVectors <= last; first += kTileVectors)
    function(first, std::integral_constant<int, kTileVectors>());
  each<kTileVectors - 1>([&](auto i) INLINE {
    if (last - first == i + 1) function(first, std::integral_constant<int, i + 1>());
  });
}

// Calls function(row, first, V) for the tiles of `rows` rows, of which the last ones may reach beyond, and the panels
// from 0 to `vectors`.
template <class Function>
INLINE static inline void tiles(int64_t rows, int64_t vectors, const Function& function) {
  panels(0, vectors, [&](int64_t first, auto V) INLINE {
    for (int64_t row = 0; row < rows; row += kTileRows) function(row, first, V);
  });
}

// `count` rows of `width` activations, `in_stride` apart, as fp32 with zeros up to `out_stride` and `rows`.
template <class T>
void read_rows(const T* in, int64_t in_stride, int64_t count, int64_t width, float* out, int64_t out_stride,
               int64_t rows) {
  for (int64_t row = 0; row < count; ++row)
    for (int64_t i = 0; i < out_stride; i += kLanes) {
      const Vec values = i < width ? load(in + row * in_stride + i, lanes_from(i, width)) : Vec{};
      store(out + row * out_stride + i, values, kLanes);
    }
  std::fill(out + count * out_stride, out + std::max(count, rows) * out_stride, 0.0f);
}

template <class T>
void write_rows(T* out, int64_t out_stride, int64_t count, int64_t width, const float* in, int64_t in_stride) {
  for (int64_t row = 0; row < count; ++row)
    for (int64_t i = 0; i < width; i += kLanes)
      store(out + row * out_stride + i, load(in + row * in_stride + i, kLanes), lanes_from(i, width));
}

// out[column][row] = in[row][column] of multiples of 4 rows and columns.
static inline void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out,
                             int64_t out_stride) {
  for (int64_t row = 0; row < rows; row += 4)
    for (int64_t column = 0; column < columns; column += 4) {
      const float* from = in + row * in_stride + column;
      float* to = out + column * out_stride + row;
#if defined(__SSE__)
      __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + in_stride);
      __m128 c = _mm_loadu_ps(from + 2 * in_stride), d = _mm_loadu_ps(from + 3 * in_stride);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      _mm_storeu_ps(to, a), _mm_storeu_ps(to + out_stride, b);
      _mm_storeu_ps(to + 2 * out_stride, c), _mm_storeu_ps(to + 3 * out_stride, d);
#else
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) to[j * out_stride + i] = from[i * in_stride + j];
#endif
    }
}

}  // namespace mambabyte
