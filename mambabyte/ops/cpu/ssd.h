// The decays between the steps of a chunk, for ssd.cpp.
#pragma once
#include "kernel.h"

namespace mambabyte {

constexpr int kChunk = 64, kChunkVectors = kChunk / kLanes;

// The decays of one head in one chunk.
class Decays {
 public:
  Vec entering[kChunkVectors], leaving[kChunkVectors];
  float whole;

  // Of `steps` logarithms (null: no decay) and document starts (or null).
  void set(const float* logs, const uint8_t* start, int steps) {
    // The sums of logarithms may be far larger than their differences, so they have two parts. Each document's begin
    // at zero: not even a rounding comes from another.
    double sum = 0;
    float high[kChunk], low[kChunk], ends[kChunk];
    int first_start = kChunk, last_start = 0, end = kChunk;
    for (int t = 0; t < kChunk; ++t) {
      if (start && t < steps && start[t])
        sum = 0;
      else if (logs && t < steps)
        sum += double(kLog2E) * (logs[t] < -kLeast ? -kLeast : logs[t]);
      high[t] = float(sum), low[t] = float(sum - high[t]);
    }
    for (int t = kChunk - 1; t >= 0; --t) {
      ends[t] = t < steps ? end : 0;
      if (start && t < steps && start[t]) {
        if (end == kChunk) last_start = t;
        first_start = end = t;
      }
    }
    std::memcpy(high_, high, sizeof high), std::memcpy(low_, low, sizeof low), std::memcpy(ends_, ends, sizeof ends);
    const float last = float(std::min(first_start, steps));
    for (int i = 0; i < kChunkVectors; ++i) {
      entering[i] = index(i) < last ? exp2(high_[i] + low_[i]) : Vec{};
      const Vec after = exp2((high[kChunk - 1] - high_[i]) + (low[kChunk - 1] - low_[i]));
      leaving[i] = (index(i) >= float(last_start)) & (index(i) < float(steps)) ? after : Vec{};
    }
    whole = first_start < kChunk ? 0.0f : exp2(splat(high[kChunk - 1]))[0];
  }

  // From step s to the steps of V vectors beginning at the vector `first`: the product of decays after s, zero for
  // steps before s and of other documents.
  template <int V>
  INLINE void between(int s, int64_t first, Vec (&out)[V]) const {
    const float high = at(high_, s), low = at(low_, s), end = at(ends_, s);
    each<V>([&](auto i) INLINE { out[i] = (high_[first + i] - high) + (low_[first + i] - low); });
    exp2_all<V>(out);
    each<V>([&](auto i) INLINE {
      const Vec t = index(first + i);
      out[i] = (t >= float(s)) & (t < end) ? out[i] : Vec{};
    });
  }

  static INLINE Vec index(int64_t vector) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v[i] = i;
    return v + float(vector * kLanes);
  }
  static INLINE float at(const Vec* v, int64_t i) { return reinterpret_cast<const float*>(v)[i]; }

 private:
  static constexpr float kLeast = 1000;  // a decay of exp(-1000) is zero
  Vec high_[kChunkVectors], low_[kChunkVectors];  // base-2 logarithms of the products of decays up to each step
  Vec ends_[kChunkVectors];                       // the first step of the next document
};

}  // namespace mambabyte
