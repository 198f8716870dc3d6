// What the kernels need of the hardware, in PTX, so that they compile without CUDA's headers. The tests run the
// kernels on a CPU, where fibers.h of the tests takes this file's place.
#pragma once
#ifdef MAMBABYTE_FIBERS
#include "fibers.h"
#else
#define DEVICE __device__ __forceinline__
// The block's dynamic shared memory, as a structure.
#define SHARED_MEMORY(Type, name)          \
  extern __shared__ float4 shared_memory[]; \
  Type& name = *reinterpret_cast<Type*>(shared_memory)
// A number that Python has to know: the size of a variable of the module, which the driver tells.
#define SIZE(name, size) extern "C" __device__ char name[size];

using int64 = long long;
struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };

// threadIdx.x, read again each time: what is computed from it does not stay in registers from tile to tile.
DEVICE int thread_number() {
  int number;
  asm volatile("mov.u32 %0, %tid.x;" : "=r"(number));
  return number;
}

// 2^x and 1/x to about 2 units in the last place; denormal numbers are zero.
DEVICE float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
DEVICE float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// From global memory that no kernel writes; the compiler does not know where the address points.
DEVICE float load_global(const float* from) {
  float x;
  asm("ld.global.nc.f32 %0, [%1];" : "=f"(x) : "l"(from));
  return x;
}
template <class Half>
DEVICE Half load_global(const Half* from) {
  Half x;
  asm("ld.global.nc.u16 %0, [%1];" : "=h"(x.bits) : "l"(from));
  return x;
}

// Rounded to the nearest.
DEVICE void store(float* to, float x) { *to = x; }
DEVICE void store(bfloat16* to, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(x)); }
DEVICE void store(float16* to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x)); }

// Two neighbours, aligned to both.
DEVICE float2 load_two(const float* from) { return *reinterpret_cast<const float2*>(from); }
DEVICE float2 load_two(const bfloat16* from) {
  const unsigned both = *reinterpret_cast<const unsigned*>(from);
  return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}
DEVICE float2 load_two(const float16* from) {
  const unsigned both = *reinterpret_cast<const unsigned*>(from);
  return make_float2(to_float(float16{static_cast<unsigned short>(both)}),
                     to_float(float16{static_cast<unsigned short>(both >> 16)}));
}
DEVICE void store_two(float* to, float2 x) { *reinterpret_cast<float2*>(to) = x; }
DEVICE void store_two(bfloat16* to, float2 x) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(x.y), "f"(x.x));
  *reinterpret_cast<unsigned*>(to) = both;
}
DEVICE void store_two(float16* to, float2 x) {
  unsigned both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(x.y), "f"(x.x));
  *reinterpret_cast<unsigned*>(to) = both;
}

DEVICE float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }

// An address in shared memory, in bytes.
using SharedAddress = unsigned;
DEVICE SharedAddress shared_address(const void* place) {
  SharedAddress address;
  asm("{ .reg .u64 place; cvta.to.shared.u64 place, %1; cvt.u32.u64 %0, place; }" : "=r"(address) : "l"(place));
  return address;
}
// Copies 16 bytes to shared memory while the thread goes on; both addresses are multiples of 16.
DEVICE void copy_async(SharedAddress to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// Waits for this thread's own copies.
DEVICE void wait_for_copies() {
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
}

DEVICE void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }
#endif
