"""Models that are a residual stream through identical layers, each with a tuple as its state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from mambabyte.models.byte_lm import VOCABULARY, State
from mambabyte.models.documentwise import DocumentwiseByteLM
from mambabyte.models.layers import ResidualNorm, run_layers


class LayerStack(DocumentwiseByteLM):
    """Embedding, layers as `run_layers` takes them, a final norm and the head, which may be the embedding's
    transpose. The config has d_model, norm_epsilon and tie_embeddings."""

    def __init__(self, config: Any, layers: Iterable[nn.Module]) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(VOCABULARY, config.d_model)
        self.layers = nn.ModuleList(layers)
        self.norm = ResidualNorm(config.d_model, config.norm_epsilon, rms=True)
        self.lm_head = nn.Linear(config.d_model, VOCABULARY, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        self.add_further_heads()

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def _read(self, bytes: Tensor, state: State | None, *more: Any) -> tuple[Tensor, State]:
        return run_layers(self.layers, self.norm, self.embedding(bytes.long()), state, *more)
