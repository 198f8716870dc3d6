"""mamba_ssm and causal_conv1d as the stages use them, and in a dry run stand-ins with the same signatures.

A stand-in computes the same by our reference. It is there so that a dry run takes the same path through a
stage.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from mambabyte import ops
from mambabyte.models import MambaByte, MambaByteConfig


def selective_scan(dry: bool) -> Any:
    """mamba_ssm's `selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)`, u (B, D, L)."""
    if not dry:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        return selective_scan_fn

    def stand_in(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any, **options: Any
    ) -> Tensor:
        D, z, delta_bias = rest
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        out = ops.selective_scan(u, delta, A, B, C, D, z, delta_bias, backend="reference", **options)
        return out.transpose(1, 2)

    return stand_in


def chunk_scan(dry: bool) -> Any:
    """mamba_ssm's `mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size)`, in our layout."""
    if not dry:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        return mamba_chunk_scan_combined

    def stand_in(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> Any:
        scaled = (x * dt.unsqueeze(-1)).to(x.dtype)
        return ops.ssd(scaled, dt * A, B, C, chunk=chunk_size, backend="reference")

    return stand_in


def causal_conv1d(dry: bool) -> Any:
    """causal_conv1d's `causal_conv1d_fn(x, weight, bias, activation=)`, x being (B, D, L)."""
    if not dry:
        from causal_conv1d import causal_conv1d_fn

        return causal_conv1d_fn

    def stand_in(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        out = nn.functional.conv1d(
            x,
            weight.unsqueeze(1).to(x.dtype),
            bias.to(x.dtype),
            padding=weight.shape[1] - 1,
            groups=len(weight),
        )
        return silu(out[..., : x.shape[-1]])

    return stand_in


def residual_norm(dry: bool) -> Any:
    """mamba_ssm's fused `layer_norm_fn(x, weight, bias, residual=, eps=, prenorm=, residual_in_fp32=)`, which
    returns the norm and the sum."""
    if not dry:
        from mamba_ssm.ops.triton.layer_norm import layer_norm_fn

        return layer_norm_fn

    def stand_in(
        x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, eps: float, prenorm: bool,
        residual_in_fp32: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        total = residual + x
        return layer_norm(total, weight.shape, weight, bias, eps).to(x.dtype), total

    return stand_in


def language_model(dry: bool, config: MambaByteConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """mamba_ssm's `MambaLMHeadModel` of the same shape as ours."""
    if dry:
        return _LanguageModel(config).to(device, dtype)
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    theirs = MambaConfig(
        d_model=config.d_model, n_layer=config.n_layer, vocab_size=256,
        ssm_cfg={key: getattr(config, key) for key in ("d_state", "d_conv", "expand")},
        rms_norm=config.norm == "rms", residual_in_fp32=True, fused_add_norm=True,
        tie_embeddings=config.tie_embeddings,
    )  # fmt: skip
    return MambaLMHeadModel(theirs, device=device, dtype=dtype)


def capture(dry: bool, model: Any, prompt_length: int, max_length: int) -> None:
    """Let `generate` capture its CUDA graph now, for any length up to this one."""
    if not dry:
        from mamba_ssm.utils.generation import update_graph_cache

        model._decoding_cache = update_graph_cache(model, None, 1, prompt_length, max_length)


class _LanguageModel(nn.Module):
    """MambaLMHeadModel's stand-in: forward's logits, the same keys of the state dict, greedy `generate`."""

    def __init__(self, config: MambaByteConfig) -> None:
        super().__init__()
        ours = MambaByte(config)
        self.backbone, self.lm_head = ours.backbone, ours.lm_head
        self._ours = [ours]  # in a list, so that its parameters are not counted twice

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self._ours[0](input_ids))

    def generate(self, input_ids: Tensor, max_length: int, cg: bool, top_k: int) -> Tensor:
        with torch.no_grad():
            while input_ids.shape[1] < max_length:
                best = self(input_ids).logits[:, -1].argmax(-1, keepdim=True)
                input_ids = torch.cat([input_ids, best], dim=1)
        return input_ids
