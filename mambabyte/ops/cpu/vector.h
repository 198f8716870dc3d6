// Sixteen float lanes, written with the compiler's portable vector extension: one AVX-512 register, two AVX2
// registers or four NEON registers from the same source.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace mambabyte {

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef uint32_t UintVec __attribute__((vector_size(64)));
typedef uint16_t HalfVec __attribute__((vector_size(32)));

struct BFloat16 {
  uint16_t bits;
};

static inline Vec splat(float x) { return Vec{} + x; }

static inline Vec to_float(HalfVec bits) {
  return reinterpret_cast<Vec>(__builtin_convertvector(bits, UintVec) << 16);
}

// Round to nearest even, as PyTorch does; a NaN stays a NaN because the quiet bit is set first.
static inline HalfVec to_bfloat16(Vec x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<HalfVec>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  const UintVec bits = reinterpret_cast<UintVec>(x);
  const UintVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UintVec quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded, HalfVec);
#endif
}

// `lanes` < kLanes only in the last block of channels: the missing lanes read as zero and are not written.
static inline Vec load(const float* p, int lanes) {
  Vec v = {};
  if (lanes == kLanes)
    std::memcpy(&v, p, sizeof v);
  else
    std::memcpy(&v, p, lanes * sizeof(float));
  return v;
}

static inline Vec load(const BFloat16* p, int lanes) {
  HalfVec v = {};
  if (lanes == kLanes)
    std::memcpy(&v, p, sizeof v);
  else
    std::memcpy(&v, p, lanes * sizeof(BFloat16));
  return to_float(v);
}

static inline void store(float* p, Vec v, int lanes) {
  if (lanes == kLanes)
    std::memcpy(p, &v, sizeof v);
  else
    std::memcpy(p, &v, lanes * sizeof(float));
}

static inline void store(BFloat16* p, Vec x, int lanes) {
  const HalfVec v = to_bfloat16(x);
  if (lanes == kLanes)
    std::memcpy(p, &v, sizeof v);
  else
    std::memcpy(p, &v, lanes * sizeof(BFloat16));
}

static inline float scalar(float x) { return x; }
static inline float scalar(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// 2^x: x = n + f with integer n and |f| <= 1/2, a polynomial of degree 5 for 2^f (relative error 1e-7), then the
// exponent is raised by n.
static inline Vec exp2(Vec x) {
#if defined(__AVX512F__)
  const Vec n = reinterpret_cast<Vec>(_mm512_roundscale_ps(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#else
  const Vec clamped = x < -126.0f ? splat(-126.0f) : (x > 127.0f ? splat(127.0f) : x);
  x = clamped;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low mantissa bits
  const Vec shifted = x + magic;
  const Vec n = shifted - magic;
#endif
  const Vec f = x - n;
  Vec p = f * 1.32647e-3f + 9.67151e-3f;
  p = p * f + 5.550734e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314698e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(p) + (reinterpret_cast<IntVec>(shifted) << 23));
#endif
}

constexpr float kLog2E = 1.4426950408889634f;

static inline Vec absolute(Vec x) {
  return reinterpret_cast<Vec>(reinterpret_cast<UintVec>(x) & 0x7fffffffu);
}

static inline Vec sigmoid(Vec x) {
  // exp of a non-positive number only, so that nothing overflows
  const Vec e = exp2(absolute(x) * -kLog2E);
  return (x >= 0.0f ? splat(1.0f) : e) / (1.0f + e);
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), with log1p(t) = 2 atanh(t / (2 + t)): accurate for the small step sizes
// (1e-3) where 1 + t would round t away.
static inline Vec softplus(Vec x) {
  const Vec t = exp2(absolute(x) * -kLog2E);
  const Vec s = t / (2.0f + t);
  const Vec q = s * s;
  Vec p = q * 0.2429030f + 0.2143056f;
  p = p * q + 0.28616612f;
  p = p * q + 0.39998888f;
  p = p * q + 0.66666676f;
  const Vec log1p = s * 2.0f + s * q * p;
  return (x > 0.0f ? x : splat(0.0f)) + log1p;
}

// Decayed states become denormal numbers, on which x86 cores are a hundred times slower: flush them to zero while a
// kernel runs, and put the thread's mode back afterwards.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

}  // namespace mambabyte
