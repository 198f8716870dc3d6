"""The device a command computes on."""

import time
from typing import TYPE_CHECKING

from mambabyte.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch


def choose_device(name: str) -> "torch.device":
    """The device that PyTorch calls ``name``; for ``auto``, CUDA if available, otherwise the CPU.

    Raises:
        UserError: there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"there is no device '{name}' here: use device=auto, cpu or cuda") from error
    return device


def to_device(array: "np.ndarray", device: "torch.device") -> "torch.Tensor":
    """The array as a tensor on a device. A GPU copies from pinned memory, and the host does not wait."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def synchronized_clock(device: "torch.device") -> float:
    """The clock in seconds, once the device has finished its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
