// The kernels of the selective scan as a library for the CPU: see fibers.h.
#include "selective_scan.cu"

#define EXPORT extern "C" __attribute__((visibility("default")))

static const Arguments* arguments;

template <void kernel(Arguments)>
static void call() {
  kernel(*arguments);
}

EXPORT int run(const char* name, const unsigned* grid, int threads, const Arguments* given, int backwards,
               const char* ignored_file, int ignored_line) {
  const struct { const char* name; void (*body)(); } kernels[] = {
#define KERNEL(name) {#name, call<name>}
      KERNEL(selective_scan_forward), KERNEL(selective_scan_backward), KERNEL(selective_scan_carry_forward),
      KERNEL(selective_scan_carry_backward), KERNEL(selective_scan_combine_forward),
      KERNEL(selective_scan_combine_backward), KERNEL(selective_scan_sums)};
  fibers::body = nullptr;
  for (const auto& kernel : kernels)
    if (!std::strcmp(kernel.name, name)) fibers::body = kernel.body;
  if (!fibers::body || threads != fibers::THREADS) return 1;
  arguments = given;
  fibers::ignored_file = ignored_file;
  fibers::ignored_line = ignored_line;
  gridDim = {grid[0], grid[1], grid[2]};
  for (unsigned z = 0; z < gridDim.z; z++)
    for (unsigned y = 0; y < gridDim.y; y++)
      for (unsigned x = 0; x < gridDim.x; x++) {
        blockIdx = {x, y, z};
        fibers::run_block(backwards);
      }
  return 0;
}
