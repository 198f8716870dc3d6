"""The fused CPU kernels: C++ compiled once on the machine that runs it, called through ctypes."""
