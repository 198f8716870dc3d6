// Runs CUDA kernels on a CPU. Each thread of a block is a fiber, which runs until it meets the others: at a shuffle or
// __syncwarp, those of its warp, at __syncthreads, those of the block. So a warp runs far ahead of the others, and
// what it reads too early is wrong: shared memory begins as NaN, and asynchronous copies arrive when they are waited
// for, no earlier. Threads that meet at different places, and warps that leave without the others, end the process
// with a message. `backwards` lets the last warp and lane run first.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define DEVICE inline
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __grid_constant__
#define SHARED_MEMORY(Type, name) Type& name = *reinterpret_cast<Type*>(fibers::shared_memory)
#define SIZE(name, size) extern "C" long size_of_##name() { return size; }
#define __syncthreads() fibers::meet(fibers::BLOCK, __LINE__, __FILE__)
#define __syncwarp() fibers::meet(fibers::WARP, __LINE__, __FILE__)

using int64 = long long;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct Index { unsigned x, y, z; };
inline Index threadIdx, blockIdx, gridDim;

namespace fibers {
enum Place { RUNNING, WARP, BLOCK, DONE };
constexpr int THREADS = 256, STACK = 64 << 10;
struct Copy { void* to; const void* from; };
struct Fiber {
  jmp_buf resume;
  ucontext_t begin;
  Place place;
  int line, turn;
  float sent[2];  // a lane is at most one shuffle ahead of its warp
  std::vector<Copy> copies;
};
inline Fiber fiber[THREADS];
alignas(64) inline char stacks[THREADS][STACK];
alignas(128) inline char shared_memory[228 << 10];
inline jmp_buf scheduler;
inline void (*body)();
inline int now, ignored_line;  // the barrier in this line is left out, to see whether a test notices
inline const char* ignored_file;

[[noreturn]] inline void fail(const char* what, int line) {
  std::fprintf(stderr, "line %d: %s\n", line, what);
  std::abort();
}

inline void meet(Place place, int line, const char* file = "") {
  if (line == ignored_line && std::strstr(file, ignored_file)) return;
  Fiber& me = fiber[now];
  me.place = place;
  me.line = line;
  if (!_setjmp(me.resume)) _longjmp(scheduler, 1);
}

inline void entry() {
  body();
  if (!fiber[now].copies.empty()) fail("a copy was never waited for", 0);
  fiber[now].place = DONE;
  _longjmp(scheduler, 1);
}

inline void run(int thread, bool first) {
  now = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  if (_setjmp(scheduler)) return;
  if (first) setcontext(&fiber[thread].begin);
  _longjmp(fiber[thread].resume, 1);
}

// Whether threads [begin, end) all wait at one place; they must not wait for each other at two.
inline bool together(int begin, int end, Place place) {
  for (int i = begin; i < end; i++)
    if (fiber[i].place != place || fiber[i].line != fiber[begin].line) return false;
  return true;
}

inline void run_block(bool backwards) {
  std::memset(shared_memory, 0xff, sizeof shared_memory);
  for (int i = 0; i < THREADS; i++) {
    getcontext(&fiber[i].begin);
    fiber[i].begin.uc_stack.ss_sp = stacks[i];
    fiber[i].begin.uc_stack.ss_size = STACK;
    fiber[i].begin.uc_link = nullptr;
    makecontext(&fiber[i].begin, entry, 0);
    fiber[i].turn = 0;
  }
  for (bool first = true;; first = false) {
    for (int w = 0; w < THREADS / 32; w++) {
      const int begin = 32 * (backwards ? THREADS / 32 - 1 - w : w), end = begin + 32;
      for (bool fresh = first;; fresh = false) {
        for (int i = 0; i < 32; i++) run(backwards ? end - 1 - i : begin + i, fresh);
        if (!together(begin, end, WARP)) break;
      }
      if (!together(begin, end, BLOCK) && !together(begin, end, DONE))
        fail("the lanes of a warp wait at different places", fiber[begin].line);
    }
    if (together(0, THREADS, DONE)) return;
    if (!together(0, THREADS, BLOCK)) fail("the warps of a block wait at different places", fiber[0].line);
  }
}
}  // namespace fibers

inline float shuffle_xor(float x, int lanes) {
  fibers::Fiber& me = fibers::fiber[fibers::now];
  const int turn = me.turn++ & 1, other = fibers::now ^ lanes;
  me.sent[turn] = x;
  fibers::meet(fibers::WARP, -lanes);
  return fibers::fiber[other].sent[turn];
}

using SharedAddress = char*;
inline SharedAddress shared_address(void* place) { return static_cast<char*>(place); }
inline void copy_async(SharedAddress to, const void* from) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & 15)
    fibers::fail("a copy is not aligned", 0);
  fibers::fiber[fibers::now].copies.push_back({to, from});
}
inline void wait_for_copies() {
  auto& copies = fibers::fiber[fibers::now].copies;
  for (const auto& copy : copies) std::memcpy(copy.to, copy.from, 16);
  copies.clear();
}
inline void prefetch(const void*) {}
inline int thread_number() { return threadIdx.x; }

inline float exp2_approximate(float x) { return exp2f(x); }
inline float reciprocal(float x) { return 1 / x; }
inline float __int_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

struct bfloat16 { uint16_t bits; };
struct float16 { _Float16 value; };
inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return __int_as_float(static_cast<unsigned>(x.bits) << 16); }
inline float to_float(float16 x) { return static_cast<float>(x.value); }
template <class T>
T load_global(const T* from) {
  return *from;
}
inline void store(float* to, float x) { *to = x; }
inline void store(bfloat16* to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to->bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline void store(float16* to, float x) { to->value = static_cast<_Float16>(x); }

template <class T>
T* aligned_pair(T* place) {
  if (reinterpret_cast<uintptr_t>(place) % (2 * sizeof(T))) fibers::fail("a pair is not aligned", sizeof(T));
  return place;
}
template <class T>
float2 load_two(const T* from) {
  return {to_float(aligned_pair(from)[0]), to_float(from[1])};
}
template <class T>
void store_two(T* to, float2 x) {
  store(aligned_pair(to), x.x);
  store(to + 1, x.y);
}
