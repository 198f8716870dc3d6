"""The parameters of a stack of Mamba blocks, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


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
    """A whole model's parameters, with V the size of the vocabulary; `epsilon` and `rms` are of all norms."""

    embedding: Tensor  # (V, d)
    blocks: Sequence[MambaBlockWeights]
    norm_weight: Tensor  # (d), of the final norm
    norm_bias: Tensor | None
    head: Tensor  # (V, d)
    epsilon: float
    rms: bool
