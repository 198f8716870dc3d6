"""What a byte of generation costs: far into a text, in a batch, and to read a prompt.

    python benchmarks/generation_cost.py [--d-model 256 --layers 4 --far 65536]

Ratios of one run, in turns: a byte after `far` bytes against one after 100; bytes per second of 32 rows
against one; reading a prompt of 100 KiB against `forward` in training mode on windows of 1,024 bytes. Memory
is what the process holds at the end of each, and what reading 1 KiB and 100 KiB adds at its peak once
100 KiB were read before.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from measuring import measure, parser, report

from mambabyte.generation import Batch, Row, Sampler, generate, read
from mambabyte.models import ByteLM, MambaByteConfig
from mambabyte.runtime.memory import PeakMemory

TURN = 256  # bytes timed at a time
NEAR, PROMPT, WINDOW, WINDOWS = 100, 102_400, 1024, 8


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=7)
    for name, default in (("d-model", 256), ("layers", 4), ("far", 65536), ("batch", 32)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=options.d_model, n_layer=options.layers, norm="rms").build().eval()
    prompt = torch.randint(0, 256, (PROMPT,), dtype=torch.uint8).numpy().tobytes()
    windows = torch.frombuffer(bytearray(prompt[: WINDOWS * WINDOW]), dtype=torch.uint8).view(WINDOWS, WINDOW)
    peak(model, prompt)  # the allocator keeps what the first long prompt took
    memory = {f"reading {size} bytes": peak(model, prompt[:size]) for size in (1024, PROMPT)}

    near, far = text(model), text(model)
    advance(near, NEAR)
    memory[f"after {NEAR} bytes"] = resident()
    advance(far, options.far - TURN)
    memory[f"after {options.far} bytes"] = resident()

    def forward() -> None:
        model.train()
        model(windows)
        model.eval()

    calls = {
        f"{TURN} bytes after {NEAR}": lambda: advance(near, TURN),
        f"{TURN} bytes after {options.far}": lambda: advance(far, TURN),
        f"{TURN} bytes of 1 row": lambda: rows(model, 1),
        f"{TURN} bytes of {options.batch} rows": lambda: rows(model, options.batch),
        f"reading {PROMPT} bytes": lambda: read(model, prompt),
        f"forward on {WINDOWS} x {WINDOW} bytes": forward,
    }
    timings = measure(calls, options.repeats)
    seconds = {name: timing.median for name, timing in timings.items()}
    per_byte = seconds[f"forward on {WINDOWS} x {WINDOW} bytes"] / (WINDOWS * WINDOW)
    ratios = {
        f"byte {options.far} / byte {NEAR}": seconds[f"{TURN} bytes after {options.far}"]
        / seconds[f"{TURN} bytes after {NEAR}"],
        f"{options.batch} rows / 1 row, bytes per second": options.batch
        * seconds[f"{TURN} bytes of 1 row"]
        / seconds[f"{TURN} bytes of {options.batch} rows"],
        "reading / forward, bytes per second": per_byte * PROMPT / seconds[f"reading {PROMPT} bytes"],
    }
    setting = {key: value for key, value in vars(options).items() if key != "json"}
    report("generation_cost", timings, ratios, options.json, **setting, **megabytes(memory))


def text(model: ByteLM) -> Iterator[int]:
    return generate(model, b"The bytes of a text, ", 10**9, Sampler(1.0))


def advance(stream: Iterator[int], count: int) -> None:
    for _ in islice(stream, count):
        pass


def rows(model: ByteLM, count: int) -> None:
    """Continue as many rows together, each with a seed of its own."""
    batch = Batch(model)
    batch.add(
        read(model, b"The bytes of a text, "), [Row(Sampler(1.0, sample=i), TURN) for i in range(count)]
    )
    for _ in batch:
        pass


def peak(model: ByteLM, prompt: bytes) -> int:
    """Bytes that reading adds to this process at its peak."""
    read(model, prompt[:1024])  # builds the kernels and the permanent buffers
    memory = PeakMemory(model.device)
    before = memory.bytes()
    read(model, prompt)
    return memory.bytes() - before


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def megabytes(memory: dict[str, int]) -> dict[str, str]:
    return {f"memory {name}": f"{bytes / 2**20:.1f} MiB" for name, bytes in memory.items()}


if __name__ == "__main__":
    main()
