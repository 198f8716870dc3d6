// What every kernel has around its arithmetic: the loops over tasks, the dtype dispatch and the lanes left at the end.
#pragma once
#include <algorithm>

#include "vector.h"

namespace mambabyte {

static inline int64_t ceil_divide(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Row t of batch b of a (B, L, width) tensor: data + batch * batch_stride + t * time_stride, last dimension contiguous.
template <class T>
struct Rows {
  T* data;
  int64_t batch_stride, time_stride;
  T* at(int64_t batch, int64_t t) const { return data + batch * batch_stride + t * time_stride; }
};

struct RawRows {
  void* data;
  int64_t batch_stride, time_stride;
  template <class T>
  Rows<T> as() const { return {static_cast<T*>(data), batch_stride, time_stride}; }
};

// Lanes in use of the block that begins at `first` in a row of `width` values.
static inline int lanes_from(int64_t first, int64_t width) {
  return int(std::min<int64_t>(kLanes, width - first));
}

// Calls task(0) .. task(count - 1) on `threads` threads.
template <class Task>
void run_tasks(int64_t count, int threads, const Task& task) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t index = 0; index < count; ++index) {
    FlushDenormals guard;
    task(index);
  }
}

// Calls task(first, last) for every block of `block` values out of `count`, shared among the threads of the parallel
// region that the caller is in. Returns once every thread has finished.
template <class Task>
inline void share_blocks(int64_t count, int64_t block, const Task& task) {
#pragma omp for schedule(static)
  for (int64_t first = 0; first < count; first += block) task(first, std::min(first + block, count));
}

// Calls function(T()) with T the type of the activations.
template <class Function>
void with_activation_type(bool bfloat16, const Function& function) {
  if (bfloat16)
    function(BFloat16());
  else
    function(float());
}

}  // namespace mambabyte
