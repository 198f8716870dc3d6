"""A byte-level Transformer (arXiv 1706.03762) in today's form: pre-norm with RMS norms (arXiv 1910.07467),
rotary positions (arXiv 2104.09864), no biases, GELU, optional sliding-window attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambabyte.config.settings import setting
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.documentwise import DocumentwiseByteLM
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layers import Stack, initialise, rotary_factors


@dataclass
class TransformerConfig(ByteLMConfig):
    d_model: int = setting(default=192, at_least=1, at_most=10**6)
    n_layer: int = setting(default=4, at_least=1, at_most=10**4)
    n_head: int = setting(default=4, at_least=1, at_most=10**5)
    d_ff: int | None = setting(default=None, at_least=1, at_most=10**7)  # 4 * d_model when null
    window: int | None = setting(
        default=None, at_least=1, at_most=2**62
    )  # bytes seen, itself included; null: all
    rope_base: float = setting(default=10_000.0, at_least=1, at_most=10**12)
    norm_epsilon: float = setting(default=1e-5, at_least=1e-12, at_most=1)
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        self.require_multiple("d_model", "n_head", 2)


class Transformer(DocumentwiseByteLM):
    """The state holds the position (B), then each layer's keys and values (B, n, H, h), of the last
    window - 1 bytes if there is a window."""

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(VOCABULARY, config.d_model)
        self.stack = Stack(
            config.d_model, config.n_layer, config.n_head, config.d_ff, config.norm_epsilon,
            rms=True, activation="gelu", window=config.window,
        )  # fmt: skip
        self.lm_head = nn.Linear(config.d_model, VOCABULARY, bias=False)
        initialise(self, std=0.02, depth=config.n_layer)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        self.add_further_heads()

    def initial_state(self, batch_size: int) -> State:
        position = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        return [(position,), *self.stack.empty_caches(batch_size)]

    def _read(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        config, length = self.config, bytes.shape[1]
        positions = torch.arange(length, device=bytes.device)
        if state is not None:
            positions = positions + state[0][0][:, None]
        x = self.embedding(bytes.long())
        rotary = rotary_factors(positions, config.d_model // config.n_head, config.rope_base, x.dtype)
        out, caches = self.stack(x, None if state is None else state[1:], rotary)
        return out, [] if state is None else [(state[0][0] + length,), *caches]

    def blocks(self) -> list[nn.Module]:
        return list(self.stack.layers)

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """Counts a whole context of keys for every byte, as SpaceByte (arXiv 2404.14408) and PyTorch do."""
        keys = min(context_length, self.config.window or context_length)
        return self.flops(self.stack.flops(keys) + 2 * self.config.d_model * VOCABULARY)


TransformerConfig.model = Transformer
