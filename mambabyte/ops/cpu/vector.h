// Vectors of float lanes in the compiler's portable vector extension, shaped by the instruction set: everything that the
// kernels' speed owes to the number and the width of the registers stands here.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace mambabyte {

#if defined(__AVX512F__)  // 32 registers of 16 lanes
constexpr int kLanes = 16, kTile = 8, kTileVectors = 4;
#else  // AVX2: 16 registers of 8 lanes; NEON: 32 of 4, two for each vector
constexpr int kLanes = 8, kTile = 4, kTileVectors = 2;
#endif
// kTile: the states of the selective scan that are kept in registers at a time
// kTileRows x kTileVectors: the sums of a matrix product that are
constexpr int kTileRows = 4;
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UintVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));
typedef int8_t ByteVec __attribute__((vector_size(kLanes)));

struct BFloat16 {
  uint16_t bits;
};

// Calls function(0) .. function(Count - 1) with constants for numbers. Compilers unroll loops too late to keep in
// registers an array that is indexed by their counters.
#define INLINE __attribute__((always_inline))
template <class Function, int... Numbers>
INLINE static inline void each(std::integer_sequence<int, Numbers...>, const Function& function) {
  (function(std::integral_constant<int, Numbers>()), ...);
}
template <int Count, class Function>
INLINE static inline void each(const Function& function) {
  each(std::make_integer_sequence<int, Count>(), function);
}

// Not x + 0, which compilers must compute: it turns -0 into 0.
static inline Vec splat(float x) { return x - Vec{}; }

static inline Vec to_float(HalfVec bits) {
  return reinterpret_cast<Vec>(__builtin_convertvector(bits, UintVec) << 16);
}

// Rounds to nearest even, as PyTorch does. Setting the quiet bit keeps a NaN a NaN.
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

// `lanes` < kLanes only in the last block of channels: the lanes not in use read as zero and are not written. Full
// registers have a path of their own, because the compiler would otherwise send them through memory.
template <class Register, class T>
static inline Register load_lanes(const T* p, int lanes) {
  Register v = {};
  if (__builtin_expect(lanes == kLanes, 1)) {
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  for (int i = 0; i < lanes; ++i) std::memcpy(reinterpret_cast<T*>(&v) + i, p + i, sizeof(T));
  return v;
}

static inline Vec load(const float* p, int lanes) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(0xffffu >> (kLanes - lanes), p));
#else
  return load_lanes<Vec>(p, lanes);
#endif
}

static inline Vec load(const BFloat16* p, int lanes) { return to_float(load_lanes<HalfVec>(p, lanes)); }

// By intrinsics, because compilers convert bytes by way of 16-bit integers, or one at a time.
static inline Vec load(const int8_t* p, int lanes) {
  const ByteVec bytes = load_lanes<ByteVec>(p, lanes);
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(reinterpret_cast<__m128i>(bytes))));
#elif defined(__AVX2__)
  int64_t bits;
  std::memcpy(&bits, &bytes, sizeof bits);
  return reinterpret_cast<Vec>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bits))));
#else
  return __builtin_convertvector(__builtin_convertvector(bytes, IntVec), Vec);
#endif
}

// Where a loaded vector is used several times, compilers may still load it each time.
static inline Vec in_register(Vec v) {
#if defined(__AVX__)
  __asm__("" : "+v"(v));
#endif
  return v;
}

static inline void store(float* p, Vec v, int lanes) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, 0xffffu >> (kLanes - lanes), reinterpret_cast<__m512>(v));
#else
  if (__builtin_expect(lanes == kLanes, 1))
    std::memcpy(p, &v, sizeof v);
  else
    std::memcpy(p, &v, lanes * sizeof(float));
#endif
}

static inline void store(BFloat16* p, Vec x, int lanes) {
  const HalfVec v = to_bfloat16(x);
  if (__builtin_expect(lanes == kLanes, 1))
    std::memcpy(p, &v, sizeof v);
  else
    std::memcpy(p, &v, lanes * sizeof(BFloat16));
}

// Kernels that read one block of channels from each row of a (B, L, D) tensor jump from row to row, which hardware
// prefetchers do not follow. So they prefetch the next block of a row while they read this one.
template <class T>
static inline void prefetch_next(const T* p) {
  __builtin_prefetch(p + kLanes);
}

static inline float scalar(float x) { return x; }
static inline float scalar(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// a b + c. Where the compiler fuses the plain expression depends on the code around it, and the last bit with that.
static inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
  return reinterpret_cast<Vec>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

// By halves: a chain of log2(kLanes) additions.
static inline float sum(Vec v) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter parts[kLanes / 4];
  std::memcpy(parts, &v, sizeof v);
  for (int count = kLanes / 8; count > 0; count /= 2)
    for (int i = 0; i < count; ++i) parts[i] += parts[i + count];
  return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

// Lane i is sum(v[i]) of kLanes vectors, by the same additions: each halves several of them at once.
static inline Vec sums(const Vec* v) {
#if defined(__AVX512F__)
  const auto at = [&](int i) INLINE { return reinterpret_cast<__m512>(v[i]); };
  __m512 quarters[4], pairs[2];  // of v[i], v[4 + i], v[8 + i] and v[12 + i]; of two i
  each<4>([&](auto i) INLINE {
    const __m512 a = at(i), b = at(4 + i);
    const __m512 ab = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
    const __m512 c = at(8 + i), d = at(12 + i);
    const __m512 cd = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xee);
    quarters[i] = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
  });
  each<2>([&](auto i) INLINE {
    const __m512 a = quarters[2 * i], b = quarters[2 * i + 1];
    pairs[i] = _mm512_shuffle_ps(a, b, 0x44) + _mm512_shuffle_ps(a, b, 0xee);
  });
  return reinterpret_cast<Vec>(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88) +
                               _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd));
#elif defined(__AVX__)
  const auto at = [&](int i) INLINE { return reinterpret_cast<__m256>(v[i]); };
  __m256 quarters[4], pairs[2];  // of v[i] and v[4 + i]; of two i
  each<4>([&](auto i) INLINE {
    quarters[i] = _mm256_permute2f128_ps(at(i), at(4 + i), 0x20) + _mm256_permute2f128_ps(at(i), at(4 + i), 0x31);
  });
  each<2>([&](auto i) INLINE {
    const __m256 a = quarters[2 * i], b = quarters[2 * i + 1];
    pairs[i] = _mm256_shuffle_ps(a, b, 0x44) + _mm256_shuffle_ps(a, b, 0xee);
  });
  return reinterpret_cast<Vec>(_mm256_shuffle_ps(pairs[0], pairs[1], 0x88) +
                               _mm256_shuffle_ps(pairs[0], pairs[1], 0xdd));
#else
  Vec result;
  each<kLanes>([&](auto i) INLINE { result[i.value] = sum(v[i]); });
  return result;
#endif
}

// A NaN stays a NaN.
static inline Vec clamp(Vec x, float low, float high) {
#if defined(__AVX__) && !defined(__AVX512F__)  // one instruction a side, where the comparison takes two
  const __m256 raised = _mm256_max_ps(_mm256_set1_ps(low), reinterpret_cast<__m256>(x));
  return reinterpret_cast<Vec>(_mm256_min_ps(_mm256_set1_ps(high), raised));
#else
  return x < low ? splat(low) : (x > high ? splat(high) : x);
#endif
}

// x[i] = 2^x[i]: x = n + f with integer n and |f| <= 1/2, a polynomial of degree 5 for 2^f (relative error 1e-7), then
// n is added to the exponent. The K of them are interleaved to hide latency.
template <int K>
static inline void exp2_all(Vec* x) {
  Vec n[K], p[K];
#if defined(__AVX512F__)
  for (int i = 0; i < K; ++i)
    n[i] = reinterpret_cast<Vec>(
        _mm512_roundscale_ps(reinterpret_cast<__m512>(x[i]), _MM_FROUND_TO_NEAREST_INT));
#else
  Vec shifted[K];
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low mantissa bits
  for (int i = 0; i < K; ++i) x[i] = clamp(x[i], -126.0f, 127.0f);
  for (int i = 0; i < K; ++i) shifted[i] = x[i] + magic;
  for (int i = 0; i < K; ++i) n[i] = shifted[i] - magic;
#endif
  for (int i = 0; i < K; ++i) x[i] -= n[i];
  for (int i = 0; i < K; ++i) p[i] = x[i] * 1.32647e-3f + 9.67151e-3f;
  for (int i = 0; i < K; ++i) p[i] = p[i] * x[i] + 5.550734e-2f;
  for (int i = 0; i < K; ++i) p[i] = p[i] * x[i] + 2.4022242e-1f;
  for (int i = 0; i < K; ++i) p[i] = p[i] * x[i] + 6.9314698e-1f;
  for (int i = 0; i < K; ++i) p[i] = p[i] * x[i] + 1.0f;
#if defined(__AVX512F__)
  for (int i = 0; i < K; ++i)
    x[i] = reinterpret_cast<Vec>(
        _mm512_scalef_ps(reinterpret_cast<__m512>(p[i]), reinterpret_cast<__m512>(n[i])));
#else
  for (int i = 0; i < K; ++i)
    x[i] = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(p[i]) + (reinterpret_cast<IntVec>(shifted[i]) << 23));
#endif
}

static inline Vec exp2(Vec x) {
  exp2_all<1>(&x);
  return x;
}

constexpr float kLog2E = 1.4426950408889634f;

static inline Vec absolute(Vec x) {
  return reinterpret_cast<Vec>(reinterpret_cast<UintVec>(x) & 0x7fffffffu);
}

static inline Vec sigmoid(Vec x) {
  // exp of a non-positive number cannot overflow.
  const Vec e = exp2(absolute(x) * -kLog2E);
  return (x >= 0.0f ? splat(1.0f) : e) / (1.0f + e);
}

struct Softplus {
  Vec value, slope;  // log(1 + e^x) and its derivative, the sigmoid
};

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), with log1p(t) = 2 atanh(t / (2 + t)): accurate for the small step sizes
// (1e-3) where 1 + t would round t away. Both results share one division.
static inline Softplus softplus(Vec x) {
  const Vec t = exp2(absolute(x) * -kLog2E);
  const Vec reciprocal = 1.0f / ((1.0f + t) * (2.0f + t));
  const Vec s = t * (1.0f + t) * reciprocal;
  const Vec q = s * s;
  Vec p = q * 0.2429030f + 0.2143056f;
  p = p * q + 0.28616612f;
  p = p * q + 0.39998888f;
  p = p * q + 0.66666676f;
  const Vec log1p = s * 2.0f + s * q * p;
  return {(x > 0.0f ? x : splat(0.0f)) + log1p, (x >= 0.0f ? splat(1.0f) : t) * ((2.0f + t) * reciprocal)};
}

// Decayed states become denormal numbers, on which x86 cores are a hundred times slower. This flushes them to zero
// while a kernel runs and restores the thread's mode afterwards.
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
