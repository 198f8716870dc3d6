"""Models that are a residual stream through identical layers, each with one tensor as its state."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from mambabyte.models.byte_lm import VOCABULARY, State
from mambabyte.models.documentwise import DocumentwiseByteLM
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layers import ResidualNorm, as_residual


class LayerStack(DocumentwiseByteLM):
    """Embedding, layers, a final norm and the head, which may be the embedding's transpose.

    A layer takes (residual, update, state or None) and returns (residual, update, state after).
    """

    def __init__(
        self,
        config: ByteLMConfig,
        layers: Iterable[nn.Module],
        d_model: int,
        norm_epsilon: float,
        tie_embeddings: bool,
    ) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(VOCABULARY, d_model)
        self.layers = nn.ModuleList(layers)
        self.norm = ResidualNorm(d_model, norm_epsilon, rms=True)
        self.lm_head = nn.Linear(d_model, VOCABULARY, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def _run(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        residual, update = as_residual(self.embedding(bytes.long())), None
        after: State = []
        for index, layer in enumerate(self.layers):
            before = None if state is None else state[index][0]
            residual, update, layer_state = layer(residual, update, before)
            if state is not None:
                after.append((layer_state,))
        return self.lm_head(self.norm(residual, update)[0]), after
