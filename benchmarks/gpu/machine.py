"""Versions, and the two ceilings: how fast this card copies memory and multiplies bf16 matrices."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from stage import Stage, main

PACKAGES = ("torch", "triton", "lightning", "hydra-core", "datasets", "mamba-ssm", "causal-conv1d", "numpy")


def run(stage: Stage) -> None:
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    stage.note("versions", ", ".join(versions))
    stage.note("device", torch.cuda.get_device_name() if stage.device.type == "cuda" else "CPU, a dry run")

    with stage.case("copy"):
        count = stage.choose(1 << 31, 1 << 16)  # bytes
        source = torch.randint(0, 256, (count,), dtype=torch.uint8, device=stage.device)
        target = torch.empty_like(source)
        taken = stage.milliseconds(lambda: target.copy_(source))
        stage.record("copy", bandwidth=(2 * count / taken / 1e9, "TB/s"))
    with stage.case("product"):
        size = stage.choose(8192, 64)
        a, b = (torch.randn(size, size, device=stage.device, dtype=torch.bfloat16) for _ in "ab")
        taken = stage.milliseconds(lambda: a @ b)
        stage.record("product", rate=(2 * size**3 / taken / 1e9, "TFLOP/s"))


if __name__ == "__main__":
    main("machine", run)
