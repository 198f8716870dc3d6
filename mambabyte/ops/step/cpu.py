"""The fused CPU step: calls `mambabyte/ops/cpu/mamba_step.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
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


_MATRICES = ("in_proj", "x_proj", "out_proj", "head")


class Block(ctypes.Structure):
    """MambaStepBlock of the C++ source."""

    _fields_ = fields(
        ctypes.c_void_p,
        " ".join(MambaBlockWeights._fields) + " in_proj_scale x_proj_scale out_proj_scale kept",
    )


class LayerState(ctypes.Structure):
    """MambaStepState of the C++ source."""

    _fields_ = fields(ctypes.c_void_p, "conv scan next_conv next_scan")


class Arguments(ctypes.Structure):
    """MambaStepArguments of the C++ source."""

    _fields_ = [
        *fields(ctypes.c_int64, "batch layers d_model d_inner states width rank vocabulary"),
        *fields(ctypes.c_int32, "threads rms storage verify"),
        ("epsilon", ctypes.c_float),
        *fields(ctypes.c_void_p, "x head head_scale norm_weight norm_bias"),
        ("blocks", ctypes.POINTER(Block)),
        *fields(ctypes.c_void_p, "state logits"),
    ]


class PreparedMamba:
    """A model's weights as the kernel reads them.

    In fp32 they are the parameters themselves, where these are contiguous: a step sees what was changed in
    them in place, though not another tensor in their place. In bf16 and int8 all are copies.

    Args:
        storage: of `in_proj`, `x_proj`, `out_proj` and the head; all else is fp32. `int8` has one scale for
            each row, its largest magnitude / 127.
    """

    def __init__(self, weights: MambaWeights, storage: str = "fp32") -> None:
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
        self._arguments = Arguments(
            layers=len(blocks), d_model=self.d_model, d_inner=inner, states=states, width=width, rank=rank,
            vocabulary=self.vocabulary, rms=weights.rms, epsilon=weights.epsilon, storage=self.storage,
            verify=1, blocks=(Block * len(blocks))(*blocks), **self._pointers(outer),
        )  # fmt: skip
        self._step = kernel(
            "mamba_step", mamba_step_arguments=Arguments, mamba_step_block=Block, mamba_step_state=LayerState
        )

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

    def check(self, x: Tensor, state: State) -> None:
        """Raises ValueError if x or the state has another shape than the model's."""
        batch = len(x)
        if x.shape != (batch, self.d_model):
            raise ValueError(f"x must have the shape (batch, {self.d_model}), not {tuple(x.shape)}")
        shapes = [(batch, *shape) for shape in self.layer_shapes]
        if len(state) != self.layers or any([tensor.shape for tensor in layer] != shapes for layer in state):
            raise ValueError(f"each of the {self.layers} layers' states must have the shapes {shapes}")

    def logits(self, x: Tensor, layer_states: ctypes.Array) -> Tensor:
        """Run the kernel on contiguous fp32 x (B, d) and the pointers of LayerState, layer after layer."""
        logits = torch.empty(len(x), self.vocabulary)
        arguments = Arguments.from_buffer_copy(self._arguments)
        arguments.batch, arguments.threads = len(x), num_threads()
        arguments.x, arguments.logits = x.data_ptr(), logits.data_ptr()
        arguments.state = ctypes.addressof(layer_states)
        self._step(ctypes.byref(arguments))
        if self.storage:
            self._arguments.verify = 0  # nobody can change these copies
        return logits


def mamba_step_fused(x: Tensor, state: State, weights: PreparedMamba) -> tuple[Tensor, State]:
    """As `mambabyte.ops.step.mamba_step`."""
    weights.check(x, state)
    # The kernel reads contiguous memory; this keeps copies alive until it is done.
    before: State = [(conv.float().contiguous(), scan.float().contiguous()) for conv, scan in state]
    conv, scan = (torch.empty(weights.layers, len(x), *shape) for shape in weights.layer_shapes)
    after: State = list(zip(conv.unbind(), scan.unbind(), strict=True))
    logits = weights.logits(x.float().contiguous(), _pointers(before, after))
    return logits, after


class MambaStepper:
    """Steps that go on from a copy of a state, which each one overwrites: a step allocates no state and looks
    at no tensor of any layer."""

    def __init__(self, weights: PreparedMamba, state: State) -> None:
        self._weights = weights
        self._state: State = [
            (conv.float().contiguous().clone(), scan.float().contiguous().clone()) for conv, scan in state
        ]
        self._pointers = _pointers(self._state, self._state)
        self._batch = len(state[0][0])
        weights.check(torch.empty(self._batch, weights.d_model), state)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, V) after one more embedded byte, x (B, d)."""
        if x.shape != (self._batch, self._weights.d_model):
            raise ValueError(
                f"x must have the shape {(self._batch, self._weights.d_model)}, not {tuple(x.shape)}"
            )
        return self._weights.logits(x.float().contiguous(), self._pointers)


def _pointers(before: State, after: State) -> ctypes.Array:
    addresses = [
        tensor.data_ptr() for both in zip(before, after, strict=True) for layer in both for tensor in layer
    ]
    return (ctypes.c_void_p * len(addresses))(*addresses)


def rounded(matrix: Tensor, storage: str) -> tuple[Tensor, Tensor | None]:
    """The matrix in bf16, or in int8 with the scale of each row; a NaN or an infinity makes its row NaN."""
    if storage == "bf16":
        result = empty(matrix.shape, torch.bfloat16)
        return result.copy_(matrix), None
    scale = matrix.abs().amax(1) / 127
    steps = (matrix / scale.where(scale > 0, 1)[:, None]).round_().nan_to_num_(0.0)
    return empty(matrix.shape, torch.int8).copy_(steps), scale
