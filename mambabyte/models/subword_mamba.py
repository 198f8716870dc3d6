"""A Mamba over subwords, which drafts for a byte model (MambaByte, arXiv 2401.13660, section 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mambabyte.errors import UserError
from mambabyte.models.mamba import MambaByte, MambaByteConfig


def subword_config(d_model: int, n_layer: int, d_state: int) -> MambaByteConfig:
    """The config of a stack with Mamba's own choices, RMS norms and a tied head."""
    return MambaByteConfig(d_model=d_model, n_layer=n_layer, d_state=d_state, norm="rms", tie_embeddings=True)


class SubwordMamba(MambaByte):
    """MambaByte's stack over another vocabulary: where that says bytes this takes token numbers, and where it
    says 256 this has `vocabulary`. The head is tied to the embedding."""

    def __init__(self, config: MambaByteConfig, vocabulary: int) -> None:
        super().__init__(config)
        self.vocabulary = vocabulary
        self.backbone.embedding = nn.Embedding(vocabulary, config.d_model)
        self.lm_head = nn.Linear(config.d_model, vocabulary, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)

    def _refuse_other_values(self, data: Tensor) -> None:
        if data.device.type == "cpu" and not 0 <= int(data.min()) <= int(data.max()) < self.vocabulary:
            raise UserError(f"token numbers are from 0 to {self.vocabulary - 1}")

    def _row(self, data: Any) -> Tensor:
        raise UserError("a subword model reads token numbers, and no bytes")
