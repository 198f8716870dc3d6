"""The fused CPU kernels: C++, compiled once on each machine and called through ctypes."""
