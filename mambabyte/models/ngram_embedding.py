"""Hashed embeddings of byte n-grams (Byte Latent Transformer, arXiv 2412.09871, section 3.2.1).

B batch   L bytes of this call   n longest n-gram   d model width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

_MULTIPLIER = 0x2545F4914F6CDD1D  # odd, so that powers of it are, and every byte of an n-gram counts


class NGramEmbedding(nn.Module):
    """Embeddings of the last 2, 3, .. n bytes, to be added to a byte's own.

    Each length has a table, and a hash of the n-gram chooses its row, which n-grams may share. They cost
    memory, but hardly any arithmetic.
    """

    def __init__(self, longest: int, buckets: int, width: int, d_model: int) -> None:
        """
        Args:
            width: of a row; the rows of all lengths are joined and projected to `d_model`.
        """
        super().__init__()
        self.longest, self.buckets = longest, buckets
        self.tables = nn.Parameter(torch.empty((longest - 1) * buckets, width))
        self.tables._no_weight_decay = True  # type: ignore[attr-defined]  # rare rows would vanish
        self.projection = nn.Linear((longest - 1) * width, d_model, bias=False)
        nn.init.normal_(self.tables, std=0.02)

    def initial_history(self, batch_size: int) -> Tensor:
        """The state (B, n - 1) before a document: the last bytes plus one, 0 where there are none."""
        return torch.zeros(batch_size, self.longest - 1, dtype=torch.long, device=self.tables.device)

    def forward(
        self, bytes: Tensor, history: Tensor | None, document_start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What is to be added to the embeddings of bytes (B, L), as (B, L, d), and the new history."""
        rows, history = self.rows(bytes, history, document_start)
        return self.projection(embedding(rows, self.tables).flatten(-2)), history

    def rows(
        self, bytes: Tensor, history: Tensor | None, document_start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The rows (B, L, n - 1) of the tables for the n-grams that end at each byte, and the new history."""
        batch, length = bytes.shape
        before = self.longest - 1
        if history is None:
            history = self.initial_history(batch)
        symbols = torch.cat([history.long(), bytes.long() + 1], dim=1)  # a state's tensors may all be floats
        at = torch.arange(length, device=bytes.device).expand(batch, length)
        begin = at.new_full((batch, length), -before)
        if document_start is not None:
            begin = torch.where(document_start, at, begin).cummax(dim=1).values
        age = at - begin  # how many bytes back the document begins, if within reach
        hashes, rows = symbols[:, before:] * _MULTIPLIER, []
        for back in range(1, self.longest):
            symbol = symbols[:, before - back : before - back + length]
            hashes = (hashes + torch.where(age >= back, symbol, 0)) * _MULTIPLIER
            bucket = (hashes >> 33).remainder(self.buckets)  # the upper bits depend on every byte
            rows.append(bucket + (back - 1) * self.buckets)
        within = torch.arange(before, 0, -1, device=bytes.device) - 1 <= age[:, -1:]
        return torch.stack(rows, dim=-1), torch.where(within, symbols[:, -before:], 0)
