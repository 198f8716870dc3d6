"""The fused CPU step: calls `mambabyte/ops/cpu/mamba_step.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambabyte.ops.cpu.arguments import empty, fields, num_threads
from mambabyte.ops.cpu.build import kernel

State = list[tuple[Tensor, ...]]
STORAGE = ("fp32", "bf16", "int8")  # by their numbers in the C++ source


class MambaBlockWeights(NamedTuple):
    """One block's parameters, in mamba_ssm's layouts. Letters as in `mambabyte.ops`; d model width, R rank of
    the step-size projection, W convolution width."""

    norm_weight: Tensor  # (d)
    norm_bias: Tensor | None
    in_proj: Tensor  # (2D, d)
    conv_weight: Tensor  # (D, W)
    conv_bias: Tensor  # (D)
    x_proj: Tensor  # (R + 2N, D)
    dt_proj: Tensor  # (D, R)
    dt_bias: Tensor  # (D)
    A_log: Tensor  # (D, N)
    D: Tensor  # (D)
    out_proj: Tensor  # (d, D)


class MambaWeights(NamedTuple):
    """A model's parameters without its embedding, with V the size of the vocabulary; `epsilon` and `rms` are
    of all norms."""

    blocks: Sequence[MambaBlockWeights]
    norm_weight: Tensor  # (d), of the final norm
    norm_bias: Tensor | None
    head: Tensor  # (V, d)
    epsilon: float
    rms: bool


class EmbeddingWeights(NamedTuple):
    """What a byte's vector is made of: its own embedding and, with n > 1, those of its last n-grams, as
    `mambabyte.models.ngram_embedding` describes them. V vocabulary, d model width."""

    embedding: Tensor  # (V, d)
    longest: int = 1  # n
    tables: Tensor | None = None  # ((n - 1) buckets, width)
    projection: Tensor | None = None  # (d, (n - 1) width)

    @property
    def buckets(self) -> int:
        return 0 if self.tables is None else len(self.tables) // (self.longest - 1)


_MATRICES = ("in_proj", "x_proj", "out_proj", "head")


class Block(ctypes.Structure):
    """MambaStepBlock of the C++ source."""

    _fields_ = fields(
        ctypes.c_void_p,
        " ".join(MambaBlockWeights._fields) + " in_proj_scale x_proj_scale out_proj_scale kept",
    )


class Embedding(ctypes.Structure):
    """MambaStepEmbedding of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_void_p, "embedding tables projection"),
        *fields(ctypes.c_int64, "longest buckets width"),
    ]


class LayerState(ctypes.Structure):
    """MambaStepState of the C++ source."""

    _fields_ = fields(ctypes.c_void_p, "conv scan next_conv next_scan")


class Arguments(ctypes.Structure):
    """MambaStepArguments of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_int64, "batch length layers d_model d_inner states width rank vocabulary"),
        *fields(ctypes.c_int32, "threads rms storage verify last_only"),
        ("epsilon", ctypes.c_float),
        ("embedding", Embedding),
        *fields(ctypes.c_void_p, "x bytes history next_history head head_scale norm_weight norm_bias"),
        ("blocks", ctypes.POINTER(Block)),
        *fields(ctypes.c_void_p, "state inputs counts logits hidden"),
    ]


class PreparedMamba:
    """A model's weights as the kernel reads them.

    In fp32 they are the parameters themselves, where these are contiguous: a step sees what was changed in
    them in place, though not another tensor in their place. In bf16 and int8 all are copies.

    Args:
        storage: of `in_proj`, `x_proj`, `out_proj` and the head; all else is fp32. `int8` has one scale for
            each row, its largest magnitude / 127.
        embedding: what `MambaStepper` needs beside them. It is never rounded, nor copied if it is fp32.
    """

    def __init__(
        self, weights: MambaWeights, storage: str = "fp32", embedding: EmbeddingWeights | None = None
    ) -> None:
        self.storage = STORAGE.index(storage)
        self.addresses: set[int] = set()  # of the weights that the kernel reads
        self._tensors: list[Tensor] = []  # kept alive for the kernel
        first = weights.blocks[0]
        (inner, states), width, rank = first.A_log.shape, first.conv_weight.shape[1], first.dt_proj.shape[1]
        # Whole vectors of channels: 16 are as many as a vector has.
        kept_size = 2 * (width + rank + states) * -(-inner // 16) * 16
        blocks = []
        for block in weights.blocks:
            kept = torch.full((kept_size,), torch.nan)
            self._tensors.append(kept)
            blocks.append(Block(kept=kept.data_ptr(), **self._pointers(block._asdict())))
        outer = {name: getattr(weights, name) for name in ("head", "norm_weight", "norm_bias")}
        self.layers, self.d_model, self.vocabulary = len(blocks), len(weights.norm_weight), len(weights.head)
        self.layer_shapes = (width - 1, inner), (inner, states)
        self.inputs_per_byte = len(blocks) * (3 * inner + rank + 2 * states)  # of `inputs` in `Arguments`
        self._arguments = Arguments(
            layers=len(blocks), d_model=self.d_model, d_inner=inner, states=states, width=width, rank=rank,
            vocabulary=self.vocabulary, rms=weights.rms, epsilon=weights.epsilon, storage=self.storage,
            verify=1, blocks=(Block * len(blocks))(*blocks), **self._pointers(outer),
        )  # fmt: skip
        self._no_byte = f"bytes are from 0 to {self.vocabulary - 1}"
        self.embeds = embedding is not None
        self.longest = 1 if embedding is None else embedding.longest  # n-gram
        if embedding is not None:
            self._arguments.embedding = self._embedding(embedding)
        structures = {
            "mamba_step_arguments": Arguments, "mamba_step_block": Block, "mamba_step_state": LayerState,
            "mamba_step_embedding": Embedding,
        }  # fmt: skip
        self._step, self._replay = kernel("mamba_step", **structures), kernel("mamba_replay")

    def _pointers(self, tensors: dict[str, Tensor | None]) -> dict[str, int]:
        result = {}
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            ours, scale = tensor.detach().float().contiguous(), None
            if name in _MATRICES and self.storage:
                ours, scale = rounded(ours, STORAGE[self.storage])
            elif self.storage:
                ours = ours.clone()
            self.addresses.add(ours.data_ptr())
            self._tensors.append(ours)
            result[name] = ours.data_ptr()
            if scale is not None:
                self._tensors.append(scale)
                result[f"{name}_scale"] = scale.data_ptr()
        return result

    def _embedding(self, weights: EmbeddingWeights) -> Embedding:
        result = Embedding(longest=weights.longest, buckets=weights.buckets)
        for name, tensor in weights._asdict().items():
            if isinstance(tensor, Tensor):
                self._tensors.append(tensor.detach().float().contiguous())
                setattr(result, name, self._tensors[-1].data_ptr())
        if weights.tables is not None:
            result.width = weights.tables.shape[1]
        return result

    def check(self, batch: int, state: State) -> None:
        """Raises ValueError if the layers' state has another shape than the model's for such a batch."""
        shapes = [(batch, *shape) for shape in self.layer_shapes]
        if len(state) != self.layers or any([tensor.shape for tensor in layer] != shapes for layer in state):
            raise ValueError(f"each of the {self.layers} layers' states must have the shapes {shapes}")

    def check_bytes(self, bytes: Tensor) -> None:
        """Raises ValueError if something is no byte; `logits` does too."""
        if not 0 <= int(bytes.min()) <= int(bytes.max()) < self.vocabulary:
            raise ValueError(self._no_byte)

    def logits(self, batch: int, length: int, last_only: bool, /, **pointers: int) -> Tensor:
        """Run the kernel: logits (B, L, V), or (B, V) of the last positions only.

        Args:
            pointers: the other fields of `Arguments` that this call needs, addresses of contiguous tensors.

        Raises:
            ValueError: among the bytes is something else.
        """
        logits = torch.empty(*((batch,) if last_only else (batch, length)), self.vocabulary)
        arguments = self._call(batch, length, logits=logits.data_ptr(), last_only=last_only, **pointers)
        if self._step(ctypes.byref(arguments)):
            raise ValueError(self._no_byte)
        if self.storage:
            self._arguments.verify = 0  # nobody can change these copies
        return logits

    def replay(self, batch: int, length: int, **pointers: int) -> None:
        """Run the kernel that makes the state after fewer bytes than the last window's."""
        self._replay(ctypes.byref(self._call(batch, length, **pointers)))

    def _call(self, batch: int, length: int, **values: int) -> Arguments:
        arguments = Arguments.from_buffer_copy(self._arguments)
        arguments.batch, arguments.length, arguments.threads = batch, length, num_threads()
        for name, value in values.items():
            setattr(arguments, name, value)
        return arguments


def mamba_step_fused(x: Tensor, state: State, weights: PreparedMamba) -> tuple[Tensor, State]:
    """As `mambabyte.ops.step.mamba_step`."""
    batch = len(x)
    if x.shape != (batch, weights.d_model):
        raise ValueError(f"x must have the shape (batch, {weights.d_model}), not {tuple(x.shape)}")
    weights.check(batch, state)
    # The kernel reads contiguous memory; these keep copies alive until it is done.
    x, before = x.float().contiguous(), [tuple(t.float().contiguous() for t in layer) for layer in state]
    conv, scan = (torch.empty(weights.layers, batch, *shape) for shape in weights.layer_shapes)
    after: State = list(zip(conv.unbind(), scan.unbind(), strict=True))
    pointers = layer_states(
        tensor.data_ptr() for both in zip(before, after, strict=True) for layer in both for tensor in layer
    )
    logits = weights.logits(batch, 1, True, x=x.data_ptr(), state=ctypes.addressof(pointers))
    return logits, after


def layer_states(addresses: Iterable[int]) -> ctypes.Array:
    """The fields of `LayerState`, layer after layer."""
    values = list(addresses)
    return (ctypes.c_void_p * len(values))(*values)


def rounded(matrix: Tensor, storage: str) -> tuple[Tensor, Tensor | None]:
    """The matrix in bf16, or in int8 with the scale of each row; a NaN or an infinity makes its row NaN."""
    if storage == "bf16":
        result = empty(matrix.shape, torch.bfloat16)
        return result.copy_(matrix), None
    scale = matrix.abs().amax(1) / 127
    steps = (matrix / scale.where(scale > 0, 1)[:, None]).round_().nan_to_num_(0.0)
    return empty(matrix.shape, torch.int8).copy_(steps), scale
