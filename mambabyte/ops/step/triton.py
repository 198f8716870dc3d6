"""The step on CUDA: which of the kernels of `triton_kernels.py` run, on which buffers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mambabyte.ops.step import triton_kernels as kernels
from mambabyte.ops.step.cpu import EmbeddingWeights, MambaBlockWeights, MambaWeights, State

STORAGE = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Up to this batch the matrix-vector kernels run, whose arithmetic grows with the batch; torch.mm above.
MATVEC_BATCH = 4
ENOUGH_PROGRAMS = 768  # of a product: about six for each multiprocessor of an H100, to share it evenly
THREAD_BYTES = 128  # of a matrix in the registers of one thread
BATCH_GROUPS = 16  # into which the programs of `conv` and `scan` divide a batch


class Launch:
    """One launch of a kernel, always on the same tensors."""

    def __init__(self, kernel: Any, grid: tuple[int, ...], warps: int, *arguments: Any, **constants: Any):
        self.kernel, self.grid, self.warps = kernel, grid, warps
        self.arguments, self.constants = arguments, constants

    def __call__(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.constants, num_warps=self.warps)


class Product:
    """out = x matrix^T with torch.mm, always on the same tensors."""

    def __init__(self, x: Tensor, matrix: Tensor, out: Tensor) -> None:
        self.x, self.matrix, self.out = x, matrix.T, out

    def __call__(self) -> None:
        torch.mm(self.x, self.matrix, out=self.out)


class TritonStep:
    """One byte of each row through embedding, layers and head, on buffers that stay where they are: what a
    CUDA graph can record. The model's parameters must not change meanwhile. Letters as in `mambabyte.ops`.

    Args:
        batch: B, the number of rows.
        storage: `fp32`, or `bf16` for `in_proj`, `x_proj`, `out_proj` and the head, which are then copies
            unless they are bf16 already, as they stay in any case. With more than MATVEC_BATCH rows, the
            vectors between these products are bf16 too.

    Attributes:
        symbols: (B, n) int64, for each row the last bytes plus one, the newest at the end, and 0 where there
            are none.
        state: of each layer its last inputs (B, W - 1, D) and its scan's state (B, D, N), fp32.
        logits: (B, V) fp32, after the step.
        layers: what each layer launches.
    """

    def __init__(
        self, weights: MambaWeights, embedding: EmbeddingWeights, batch: int, storage: str = "fp32"
    ) -> None:
        self._dtype = torch.bfloat16 if weights.head.dtype == torch.bfloat16 else STORAGE[storage]
        self._weights, self.batch = weights, batch
        first = weights.blocks[0]
        (self._channels, self._states), self._rank = first.A_log.shape, first.dt_proj.shape[1]
        self._before, self._width = first.conv_weight.shape[1] - 1, len(weights.norm_weight)
        self._projected = self._rank + 2 * self._states
        self._alone = batch <= MATVEC_BATCH  # whether a product is a matrix and a few vectors
        vectors = torch.float32 if self._alone else self._dtype
        self.symbols = self._empty(embedding.longest, dtype=torch.int64).zero_()
        self.state: State = [
            (self._empty(self._before, self._channels), self._empty(self._channels, self._states))
            for _ in weights.blocks
        ]
        self.logits = self._empty(len(weights.head))
        # Two residual streams, which take turns: a program reads one while another writes the other.
        self._residual = [self._empty(self._width) for _ in range(2)]
        self._update, self._normed = (self._empty(self._width, dtype=vectors) for _ in range(2))
        self._xz = self._empty(2 * self._channels, dtype=vectors)
        self._u, self._y = (self._empty(self._channels, dtype=vectors) for _ in range(2))
        self._conv_block = 64 if self._alone else 256
        count = math.ceil(self._channels / self._conv_block) if self._alone else 1
        self._parts = self._empty(count, self._projected, dtype=vectors)
        self._embed = self._embedding(embedding)
        self.layers = [self._layer(index) for index in range(len(weights.blocks))]
        self._head = self._end()

    def __call__(self) -> None:
        self._embed()
        for layer in self.layers:
            for launch in layer:
                launch()
        for launch in self._head:
            launch()

    @property
    def launches(self) -> list[Callable[[], None]]:
        """All of them, in order."""
        return [self._embed, *(launch for layer in self.layers for launch in layer), *self._head]

    def load(self, history: Tensor | None, layers: State) -> None:
        """Go on from a state: the n-grams' (B, n - 1) if there are any, and the layers'.

        Raises:
            ValueError: a state of another shape.
        """
        shapes = [[tensor.shape for tensor in layer] for layer in self.state]
        if [[tensor.shape for tensor in layer] for layer in layers] != shapes:
            raise ValueError(f"the layers' states must have the shapes {shapes[0]}, {len(shapes)} times")
        for ours, given in zip(self.state, layers, strict=True):
            for buffer, tensor in zip(ours, given, strict=True):
                buffer.copy_(tensor)
        self.symbols.zero_()
        if history is not None:
            self.symbols[:, 1:].copy_(history)

    def push(self, byte: Tensor) -> None:
        """Let byte (B,) be the newest."""
        self.symbols.copy_(torch.cat([self.symbols[:, 1:], byte.to(self.symbols).unsqueeze(1) + 1], dim=1))

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(self.batch, *shape, dtype=dtype, device=self._weights.head.device)

    def _stored(self, matrix: Tensor) -> Tensor:
        return matrix.detach().to(self._dtype).contiguous()

    def _embedding(self, weights: EmbeddingWeights) -> Launch:
        block, width = min(64, _power(self._width)), 0
        if weights.tables is not None:
            width = weights.tables.shape[1]
        tensors = (None if w is None else w.detach().contiguous() for w in
                   (weights.embedding, weights.tables, weights.projection))  # fmt: skip
        return Launch(
            kernels.embed_kernel, (math.ceil(self._width / block), self.batch), 4,
            self.symbols, *tensors, self._residual[0], self._width, weights.buckets, width,
            LONGEST=weights.longest, BLOCK=block, WIDTH=_power(width),
        )  # fmt: skip

    def _layer(self, index: int) -> list[Callable[[], None]]:
        block = self._weights.blocks[index]
        window, state = self.state[index]
        norm, x_proj = (block.norm_weight, block.norm_bias), self._stored(block.x_proj)
        if self._alone:
            return [
                self._matvec(norm, index, block.in_proj, self._xz),
                self._conv(block, x_proj, window),
                self._scan(block, state),
                self._matvec(None, index, block.out_proj, self._update),
            ]
        return [
            self._norm(norm, index, self._normed),
            Product(self._normed, self._stored(block.in_proj), self._xz),
            self._conv(block, None, window),
            Product(self._u, x_proj, self._parts[:, 0]),
            self._scan(block, state),
            Product(self._y, self._stored(block.out_proj), self._update),
        ]

    def _end(self) -> list[Callable[[], None]]:
        weights, last = self._weights, len(self._weights.blocks)
        norm = (weights.norm_weight, weights.norm_bias)
        if self._alone:
            return [self._matvec(norm, last, weights.head, self.logits)]
        # In fp32: it is a small product, and its sums are the logits.
        normed, head = self._empty(self._width), self._stored(weights.head).float()
        return [self._norm(norm, last, normed), Product(normed, head, self.logits)]

    def _norm(self, norm: tuple[Tensor, Tensor | None], index: int, out: Tensor) -> Launch:
        return Launch(
            kernels.norm_kernel, (self.batch,), _warps(_power(self._width)),
            self._residual[0], self._update if index else None, *map(_plain, norm), out,
            self._width, self._weights.epsilon, RMS=self._weights.rms, BLOCK=_power(self._width),
        )  # fmt: skip

    def _matvec(
        self, norm: tuple[Tensor, Tensor | None] | None, index: int, matrix: Tensor, out: Tensor
    ) -> Launch:
        """The product of the normalised residual stream before layer `index`, or of y without a norm."""
        matrix, (rows, columns) = self._stored(matrix), matrix.shape
        block = _power(columns)
        warps = _warps(block)
        tile = THREAD_BYTES * 32 * warps // (block * matrix.element_size())
        height = max(1, min(tile, _power(rows // ENOUGH_PROGRAMS + 1) // 2))
        x, update, summed, weights = self._y, None, None, (None, None)
        if norm is not None:
            x, weights = self._residual[max(index - 1, 0) % 2], tuple(map(_plain, norm))
            update = self._update if index else None
            summed = self._residual[index % 2] if 0 < index < len(self._weights.blocks) else None
        return Launch(
            kernels.matvec_kernel, (math.ceil(rows / height),), warps,
            x, update, summed, *weights, matrix, out, self.batch, rows, columns, self._weights.epsilon,
            RMS=self._weights.rms, ROWS=height, BLOCK=block,
        )  # fmt: skip

    def _conv(self, block: MambaBlockWeights, matrix: Tensor | None, window: Tensor) -> Launch:
        group = self.batch if self._alone else math.ceil(self.batch / BATCH_GROUPS)
        grid = (math.ceil(self._channels / self._conv_block), math.ceil(self.batch / group))
        projected = _power(self._projected)
        tile = 0 if matrix is None else projected * self._conv_block * matrix.element_size()
        return Launch(
            kernels.conv_kernel, grid, max(4, min(16, tile // (32 * THREAD_BYTES))),
            self._xz, window, _plain(block.conv_weight.T), _plain(block.conv_bias), self._u, matrix,
            None if matrix is None else self._parts, self.batch, self._channels, self._projected,
            BEFORE=self._before, BEFORE_BLOCK=_power(self._before), BATCH_BLOCK=group, BLOCK=self._conv_block,
            PROJECTED_BLOCK=projected,
        )  # fmt: skip

    def _scan(self, block: MambaBlockWeights, state: Tensor) -> Launch:
        rank, states, count = _power(self._rank), _power(self._states), self._parts.shape[1]
        channels = max(1, min(32, 8192 // max(rank, states)))
        group = 1 if self._alone else math.ceil(self.batch / BATCH_GROUPS)
        rate = -torch.exp(_plain(block.A_log)) * math.log2(math.e)
        return Launch(
            kernels.scan_kernel, (math.ceil(self._channels / channels), math.ceil(self.batch / group)), 8,
            self._parts, self._u, self._xz, state, _plain(block.dt_proj), _plain(block.dt_bias),
            _plain(block.D), rate, self._y, self.batch, count, self._channels, self._rank, self._states,
            BATCH_BLOCK=group, BLOCK=channels, RANK=rank, STATES=states,
            PARTS=min(_power(count), max(1, 8192 // rank)),
        )  # fmt: skip


class TritonStepper:
    """Steps that go on from a copy of a state: one more byte (B,) of each row to logits (B, V).

    Args:
        history: the state of the n-grams (B, n - 1), if there are any.
        layers: the state of the layers.
        storage: as for `TritonStep`.

    Raises:
        ValueError: a state of another shape.
    """

    def __init__(
        self, weights: MambaWeights, embedding: EmbeddingWeights, history: Tensor | None, layers: State,
        storage: str = "fp32",
    ) -> None:  # fmt: skip
        self._step = TritonStep(weights, embedding, len(layers[0][0]), storage)
        self._replay = recorded(self._step, self._step.logits.device)
        self._step.load(history, layers)

    def __call__(self, byte: Tensor) -> Tensor:
        if byte.shape != (self._step.batch,):
            raise ValueError(f"byte must have the shape ({self._step.batch},), not {tuple(byte.shape)}")
        self._step.push(byte)
        self._replay()
        return self._step.logits.clone()


def recorded(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The function's launches as a CUDA graph's replay, after a warm-up that compiles them; on a CPU, in
    Triton's interpreter, the function itself. It must always use the same tensors and allocate none."""
    if device.type != "cuda":
        return function
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Another thread may use the device meanwhile, for instance one that pins batches.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            function()
    return graph.replay


def _power(number: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << max(number - 1, 0).bit_length()


def _warps(block: int) -> int:
    return max(1, min(8, block // 256))


def _plain(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().float().contiguous()
