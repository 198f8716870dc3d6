"""The selective scan in CUDA C++: launches the kernels of `mambabyte/ops/cuda/selective_scan*`.

The head of each source says how its kernels work. In short: a block of 256 threads takes 64 channels (with up
to 16 states) through time, with the states in registers; forward keeps the state before every 128 steps for
backward, N / 32 bytes per element of u, and backward recomputes the states in between. Sums are taken in a
fixed order, so that the same device gives the same bits every time.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mambabyte.ops.cpu.arguments import Rows, contiguous, fields
from mambabyte.ops.cpu.build import KernelUnavailable
from mambabyte.ops.cuda import launch
from mambabyte.ops.cuda.compile import available as compiler_available
from mambabyte.ops.cuda.compile import compile_cubin
from mambabyte.ops.selective_scan.reference import ScanInputs

TILE, THREADS = 32, 256  # steps of a tile, threads of a block: as in selective_scan.cuh
KEPT_TILES = 4  # forward keeps the state before every 4th tile: as there
STATES = (8, 16, 32, 64, 128)  # N is padded to the next of these
ELEMENTS = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# Backward's sums of dB and dC over the channels of a block, 2 bytes per element of u with 16 states, wait in
# a buffer of about this size; a longer scan is launched in parts.
PARTIAL_BYTES = 1 << 28
SHORTEST_SPAN = 8  # tiles
LARGEST_STRIDE = 1 << 24  # elements, so that 32 bits hold the bytes of a tile's steps
_DIFFERENTIABLE = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
_PARAMETERS = ("A", "D", "delta_bias")


class Arguments(ctypes.Structure):
    """Arguments of selective_scan.cuh."""

    _fields_ = [
        *fields(ctypes.c_int32, "length channels states channel_blocks batch"),
        *fields(
            ctypes.c_int32,
            "first_tile end_tile span_tiles spans softplus accumulate aligned grad_z_stride unused",
        ),
        *fields(Rows, "u delta z B C grad_out"),
        *fields(ctypes.c_void_p, "A D delta_bias document_start"),
        *fields(ctypes.c_void_p, "boundary last kept out grad_u grad_delta grad_z partial parameters"),
        *fields(ctypes.c_void_p, "grad_B grad_C grad_A grad_D grad_delta_bias carry decay"),
    ]


def available() -> tuple[bool, str]:
    """Whether the kernels can be compiled and run here, and why or why not."""
    return _available()


@functools.cache
def _available() -> tuple[bool, str]:
    device, reason = launch.available()
    if not device:
        return False, reason
    compiler, version = compiler_available()
    return compiler, f"{version}, {reason}" if compiler else version


def cannot_serve(dtype: torch.dtype, states: int = 16, **_: Any) -> str | None:
    """Why the kernels cannot scan `states` states a channel with activations of this dtype, or None. It
    compiles and loads them, so that what NVRTC or the driver refuses is known before the scan is begun."""
    try:
        kernels(torch.device("cuda", torch.cuda.current_device()), dtype, _padded(states))
    except (KernelUnavailable, ValueError) as error:
        return str(error)
    return None


def _padded(states: int) -> int:
    for size in STATES:
        if size >= states:
            return size
    raise ValueError(f"the CUDA scan has at most {STATES[-1]} states, not {states}")


@functools.cache
def _load(device: torch.device, dtype: torch.dtype, states: int) -> launch.Module | str:
    """The kernels, or why they cannot be used: it is found out once."""
    try:
        major, minor = torch.cuda.get_device_capability(device)
        binary = compile_cubin(
            "selective_scan.cu", f"sm_{major}{minor}", STATES=states, ELEMENT=ELEMENTS[dtype]
        )
        module = launch.Module(binary, device)
        if module.size("selective_scan_arguments") != ctypes.sizeof(Arguments):
            raise RuntimeError("the fields of Arguments differ between cuda.py and selective_scan.cuh")
        return module
    except KernelUnavailable as error:
        return str(error)


def kernels(device: torch.device, dtype: torch.dtype, states: int) -> launch.Module:
    """The kernels for this device, dtype and padded number of states.

    Raises:
        KernelUnavailable: NVRTC or the driver refuses them.
    """
    loaded = _load(device, dtype, states)
    if isinstance(loaded, str):
        raise KernelUnavailable(loaded)
    return loaded


def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _aligned(rows: Tensor) -> bool:
    """Whether each row of (B, L, D) begins at a multiple of 16 bytes."""
    size = rows.element_size()
    return all(x % 16 == 0 for x in (rows.data_ptr(), rows.stride(0) * size, rows.stride(1) * size))


STRIDED_GRAD_Z = True


def states_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """(B, kept, D, padded N): the state before every KEPT_TILES tiles."""
    return u.shape[0], -(-u.shape[1] // (TILE * KEPT_TILES)), A.shape[0], _padded(A.shape[1])


class _Scan:
    """A scan's arguments as the kernels read them, and the launches of the kernels on them."""

    def __init__(self, inputs: ScanInputs, grad_out: Tensor | None = None) -> None:
        u, delta, A, B, C, D, z, delta_bias, softplus, _, document_start = inputs
        self.batch, self.length, self.channels = u.shape
        self.states, self.padded = A.shape[1], _padded(A.shape[1])
        self.tiles = -(-self.length // TILE)
        dtypes = {x.dtype for x in (u, delta, B, C, z) if x is not None}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        self.device = u.device
        self.module = kernels(u.device, self.dtype, self.padded)
        self.blocks = -(-self.channels // self.module.size("selective_scan_channels"))
        given = {"u": u, "delta": delta, "z": z, "B": B, "C": C, "grad_out": grad_out}
        rows = {name: self._rows(x) for name, x in given.items() if x is not None}
        activations = [x for name, x in rows.items() if name not in "BC"]
        self.tensors = {  # kept alive until the launches are on the stream
            **rows,
            "A": self.padded_states(A),
            "D": contiguous(D),
            "delta_bias": contiguous(delta_bias),
            "document_start": contiguous(document_start, torch.uint8),
        }
        self.numbers = {
            "length": self.length, "channels": self.channels, "states": self.states, "batch": self.batch,
            "channel_blocks": self.blocks, "softplus": softplus, "aligned": all(map(_aligned, activations)),
        }  # fmt: skip
        self.spans, self.span_tiles = self._spans()

    def _rows(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.dtype)
        rows = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
        return tensor if rows and tensor.stride(1) < LARGEST_STRIDE else tensor.contiguous()

    def _spans(self) -> tuple[int, int]:
        """How many spans time is cut into, and their tiles: one, unless there are so few blocks that scanning
        each span twice pays. Two blocks run on a multiprocessor at once."""
        wanted = 2 * multiprocessors(self.device) // (self.batch * self.blocks)
        spans = min(wanted, self.tiles // SHORTEST_SPAN)
        if spans < 3:
            return 1, self.tiles
        span_tiles = -(-self.tiles // spans)
        return -(-self.tiles // span_tiles), span_tiles

    def empty_gradients(self, inputs: ScanInputs) -> dict[str, Tensor]:
        """For the kernels, by their names there: of activations as they are read, of parameters in fp32."""
        given = {name: getattr(inputs, name) for name in _DIFFERENTIABLE}
        return {
            f"grad_{name}": torch.empty(
                x.shape, dtype=torch.float32 if name in _PARAMETERS else self.dtype, device=self.device
            )
            for name, x in given.items()
            if x is not None
        }

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def matrices(self, *shape: int) -> Tensor:
        """fp32 of the shape (..., D, padded N)."""
        return self.empty(*shape, self.channels, self.padded)

    def padded_states(self, tensor: Tensor | None) -> Tensor | None:
        """(..., N) as the kernels read it: fp32, with zeros up to the padded N."""
        if tensor is None or self.padded == self.states:
            return contiguous(tensor)
        return pad(tensor.float(), (0, self.padded - self.states))

    def unpadded_states(self, tensor: Tensor) -> Tensor:
        return tensor if self.padded == self.states else tensor[..., : self.states].contiguous()

    def launch(self, name: str, grid: tuple[int, int, int], **values: Tensor | int | None) -> None:
        """Launch a kernel on a grid of (batch, blocks of channels, spans), with these arguments beside those
        of the scan."""
        arguments, kinds = Arguments(), dict(Arguments._fields_)  # type: ignore[arg-type]
        for field, value in {**self.tensors, **self.numbers, **values}.items():
            if isinstance(value, Tensor) and kinds[field] is Rows:
                setattr(arguments, field, Rows(value.data_ptr(), *value.stride()[:2]))
            elif value is not None:
                setattr(arguments, field, value.data_ptr() if isinstance(value, Tensor) else value)
        self.module.launch(f"selective_scan_{name}", grid, THREADS, arguments)

    def launch_for(self, elements: int, name: str, **values: Tensor | int | None) -> None:
        """Launch a kernel with a thread for each element."""
        self.launch(name, (-(-elements // THREADS), 1, 1), **values)

    def entering(self, boundary: Tensor | None, direction: str) -> Tensor:
        """What enters each span, (B, spans, D, N), from what enters the first (backward: the last)."""
        carry, decay = self.matrices(self.batch, self.spans), self.matrices(self.batch, self.spans)
        values: dict[str, Any] = {"carry": carry, "decay": decay, "spans": self.spans}
        self.launch(
            f"carry_{direction}", (self.batch, self.blocks, self.spans), end_tile=self.tiles,
            span_tiles=self.span_tiles, **values,
        )  # fmt: skip
        self.launch_for(
            self.batch * self.channels * self.padded, f"combine_{direction}", boundary=boundary, **values
        )
        return carry


def forward(inputs: ScanInputs, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, L, D) in u's dtype, the final state (B, D, N) fp32, and for backward the state before
    every KEPT_TILES tiles, of shape `states_shape`, or an empty tensor.

    Raises:
        KernelUnavailable: NVRTC or the driver refuses the kernels.
        ValueError: more states than the kernels have.
    """
    x = _Scan(inputs)
    out = torch.empty(inputs.u.shape, dtype=x.dtype, device=x.device)
    last = x.matrices(x.batch)
    kept = x.matrices(x.batch, -(-x.tiles // KEPT_TILES)) if keep_states else None
    boundary = x.padded_states(inputs.initial_state)
    if x.spans > 1:
        boundary = x.entering(boundary, "forward")
    x.launch(
        "forward", (x.batch, x.blocks, x.spans), end_tile=x.tiles, span_tiles=x.span_tiles, spans=x.spans,
        boundary=boundary, last=last, kept=kept, out=out,
    )  # fmt: skip
    return out.to(inputs.u.dtype), x.unpadded_states(last), last.new_empty(0) if kept is None else kept


def backward(
    grad_out: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, states: Tensor,
    grad_z: Tensor | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, delta_bias and the initial state (B, D, N), each in its
    argument's dtype, the last in fp32; `states` are those that `forward` kept. That of z is written to
    `grad_z`, if there is one, whose rows may be some way apart.

    Raises:
        KernelUnavailable: as `forward`.
    """
    x = _Scan(inputs, grad_out)
    gradients = x.empty_gradients(inputs)
    if grad_z is not None and grad_z.dtype == x.dtype:
        gradients["grad_z"] = grad_z
    x.numbers["grad_z_stride"] = gradients["grad_z"].stride(1) if "grad_z" in gradients else 0
    last, boundary = x.matrices(x.batch), x.padded_states(grad_final_state)
    tile_bytes = 8 * x.batch * x.blocks * TILE * x.padded
    if x.spans > 1:
        boundary = x.entering(boundary, "backward")
        span_tiles = x.span_tiles
        at_once = max(1, PARTIAL_BYTES // (tile_bytes * span_tiles))  # spans in a launch
    else:
        # One span after another, from the last, each of which hands its gradient to the one before.
        span_tiles = max(1, min(x.tiles, PARTIAL_BYTES // tile_bytes))
        if KEPT_TILES < span_tiles < x.tiles:
            span_tiles -= span_tiles % KEPT_TILES  # so that no tile is swept for two of them
        at_once = 1
    even_channels = x.channels + x.channels % 2
    parameters = x.empty(x.batch, x.spans, x.channels * x.padded + 2 * even_channels)
    partial = x.empty(min(x.tiles, at_once * span_tiles) * tile_bytes // 4)
    starts = range(0, x.tiles, at_once * span_tiles)
    for first in reversed(starts):
        end = min(x.tiles, first + at_once * span_tiles)
        tiles = {"first_tile": first, "end_tile": end, "span_tiles": span_tiles, "spans": x.spans}
        span = first // span_tiles if x.spans > 1 else 0  # the launch's first in `boundary` and `parameters`
        x.launch(
            "backward", (x.batch, x.blocks, -(-(end - first) // span_tiles)), **tiles, kept=states,
            boundary=None if boundary is None else boundary[:, span:], parameters=parameters[:, span:],
            last=last if x.spans == 1 or first == 0 else None, partial=partial,
            accumulate=x.spans == 1 and first != starts[-1], **gradients,
        )  # fmt: skip
        threads = x.batch * (end - first) * TILE * 2 * x.padded // (2 if x.padded < 16 else 4)
        done = first == 0  # with what `parameters` adds up
        blocks = -(-max(threads, parameters.shape[2] if done else 0) // THREADS)
        x.launch("sums", (blocks, 1 + done, 1), **tiles, partial=partial, parameters=parameters, **gradients)
        boundary = last if x.spans == 1 else boundary
    if grad_z is not None and gradients["grad_z"] is not grad_z:
        grad_z.copy_(gradients["grad_z"])
    found = [gradients.get(f"grad_{name}") for name in _DIFFERENTIABLE]
    given = [getattr(inputs, name) for name in _DIFFERENTIABLE]
    cast = [None if g is None else g.to(x.dtype) for g, x in zip(found, given, strict=True)]
    return (*cast, x.unpadded_states(last))
