"""The CUDA kernels: CUDA C++, compiled by NVRTC for the device at first use and launched through ctypes.

They use no CUDA headers and no PyTorch headers, so that only libnvrtc, which PyTorch's CUDA builds bring
along, and the driver are needed.
"""
