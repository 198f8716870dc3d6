"""What the ops' Triton kernels share."""
