// The selective scan for one number of states and one type of activations, as in -DSTATES=16 -DELEMENT=bfloat16;
// `mambabyte/ops/selective_scan/cuda.py` launches the kernels.
#include "selective_scan_backward.cuh"
#include "selective_scan_forward.cuh"
#include "selective_scan_spans.cuh"
#include "selective_scan_sums.cuh"

// What Python has to know, as the size of a variable: the structure's bytes, and the shared memory of a kernel in
// units of 16 bytes.
SIZE(selective_scan_arguments, sizeof(Arguments))
SIZE(selective_scan_channels, CHANNELS)
SIZE(selective_scan_forward_shared, sizeof(ForwardShared) / 16)
SIZE(selective_scan_backward_shared, sizeof(BackwardShared) / 16)
SIZE(selective_scan_carry_forward_shared, sizeof(CarryShared) / 16)
SIZE(selective_scan_carry_backward_shared, sizeof(CarryShared) / 16)
