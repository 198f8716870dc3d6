"""SpaceByte (arXiv 2404.14408): a byte-level Transformer with wider blocks for a few bytes in its middle.

    d local width   D >= d global width   W window   P bytes of a fixed patch

Every byte goes through the initial and the final local blocks, with attention over the last W bytes.
Between them, the bytes that open a patch go through the global blocks: their local activations, with zeros
in front up to D, plus a position embedding, attend to those of the patches before, and the last d channels
of the result are added back.

A byte is spacelike if it is neither an ASCII letter or digit nor a UTF-8 continuation byte, 0x80 to 0xBF.
Only its value counts: the rule holds for invalid UTF-8, and 254 and 255 are as spacelike as all from 0xC0
on. A spacelike byte that follows no other opens a patch, and so does a document's first byte, where the
paper has a BOS. With `patching=fixed`, the paper's ablation, every P-th byte of a document does so, and no
other.

Parameters have the names and shapes of the authors' code (github.com/kjslag/spacebyte). That trains none of
the bytes after the T / 6 patches for which a window of T bytes has room; here no byte is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import pad

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.documentwise import DocumentwiseByteLM
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layers import rotary_factors, run_layers
from mambabyte.models.spacebyte_layers import Block, Filled, Logits
from mambabyte.models.states import map_tensors


@dataclass
class SpaceByteConfig(ByteLMConfig):
    patching: Literal["spacelike", "fixed"] = "spacelike"
    # fixed: of every patch; spacelike: expected, for estimates of compute and memory alone
    bytes_per_chunk: float = setting(default=6.0, at_least=1, at_most=10**6)
    max_length: int = setting(default=8192, at_least=1, at_most=2**30)  # positions of bytes
    # positions of the global blocks; null: as many as max_length bytes can open
    global_max_length: int | None = setting(default=None, at_least=1, at_most=2**30)
    d_model: int = setting(default=256, at_least=1, at_most=10**6)
    n_layer: int = setting(default=2, at_least=1, at_most=10**4)
    n_head: int = setting(default=4, at_least=1, at_most=10**5)
    d_ff: int | None = setting(default=None, at_least=1, at_most=10**7)  # 4 * d_model when null
    local_d_model: int = setting(default=128, at_least=1, at_most=10**6)
    local_n_layer: int = setting(default=2, at_least=1, at_most=10**4)  # half of them initial, half final
    local_n_head: int = setting(default=2, at_least=1, at_most=10**5)
    local_d_ff: int | None = setting(default=None, at_least=1, at_most=10**7)  # 4 * local_d_model when null
    local_window: int = setting(default=128, at_least=1, at_most=2**62)  # bytes seen, itself included
    rope_base: float = setting(default=10_000.0, at_least=1, at_most=10**12)
    norm_epsilon: float = setting(default=1e-5, at_least=1e-12, at_most=1)
    initializer_scale: float = setting(default=1.0, above=0, at_most=10**3)  # times 1 / sqrt(inputs)
    embedding_std: float = setting(default=1.0, above=0, at_most=10**3)  # of bytes and positions

    def __post_init__(self) -> None:
        self.require_multiple("d_model", "n_head", 2)
        self.require_multiple("local_d_model", "local_n_head", 2)
        if self.local_d_model > self.d_model:
            raise UserError(
                f"model.local_d_model={self.local_d_model} must be at most model.d_model={self.d_model}"
            )
        if self.patching == "fixed" and self.bytes_per_chunk % 1:
            raise UserError(
                f"model.bytes_per_chunk={self.bytes_per_chunk} must be whole where model.patching=fixed"
            )

    @property
    def global_positions(self) -> int:
        """Rows of the global position embedding."""
        if self.global_max_length is not None:
            return self.global_max_length
        if self.patching == "fixed":
            return -(-self.max_length // int(self.bytes_per_chunk))
        return 1 + self.max_length // 2  # the first byte, and at most every second

    @property
    def max_bytes(self) -> int:
        """The bytes of a text that the model can read, however many patches they open."""
        patches = self.global_positions
        most = patches * int(self.bytes_per_chunk) if self.patching == "fixed" else 2 * patches - 1
        return min(self.max_length, most)


class SpaceByte(DocumentwiseByteLM):
    """The state holds the bytes read, the patches opened and the last byte of each row (B); then keys and
    values of the initial, global and final blocks. Those of a local block are of the last W - 1 bytes. Of a
    global block's, a row uses as many as it has opened patches; what follows up to the longest is padding."""

    config: SpaceByteConfig

    def __init__(self, config: SpaceByteConfig) -> None:
        super().__init__(config)
        width, local, epsilon = config.d_model, config.local_d_model, config.norm_epsilon
        initial = config.local_n_layer // 2
        self.local_position_encoding = nn.Parameter(torch.empty(config.max_length, local))
        self.global_position_encoding = nn.Parameter(torch.empty(config.global_positions, width))
        self.token_embedding = nn.Embedding(VOCABULARY, local)

        def local_blocks(count: int) -> nn.ModuleList:
            heads, inner, window = config.local_n_head, config.local_d_ff, config.local_window
            return nn.ModuleList(Block(local, heads, inner, window, epsilon) for _ in range(count))

        self.initial_blocks = local_blocks(initial)
        self.global_blocks = nn.ModuleList(
            Block(width, config.n_head, config.d_ff, None, epsilon) for _ in range(config.n_layer)
        )
        self.final_blocks = local_blocks(config.local_n_layer - initial)
        self.logits = Logits(local, epsilon)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_scale * module.in_features**-0.5)
        positions = self.local_position_encoding, self.global_position_encoding
        for table in (self.token_embedding.weight, *positions):
            nn.init.normal_(table, std=config.embedding_std)
        self.add_further_heads()

    @property
    def lm_head(self) -> nn.Linear:  # type: ignore[override]
        return self.logits.logits_linear

    def initial_state(self, batch_size: int) -> State:
        config, weight = self.config, self.token_embedding.weight
        none = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)

        def caches(blocks: nn.ModuleList, width: int, heads: int) -> State:
            empty = weight.new_zeros(batch_size, 0, heads, width // heads)
            return [(empty, empty) for _ in blocks]

        local = config.local_d_model, config.local_n_head
        return [
            (none, none, none),
            *caches(self.initial_blocks, *local),
            *caches(self.global_blocks, config.d_model, config.n_head),
            *caches(self.final_blocks, *local),
        ]

    def _read(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        config, length = self.config, bytes.shape[1]
        places = torch.arange(length, device=bytes.device)
        initial = slice(1, 1 + len(self.initial_blocks))
        middle = slice(initial.stop, initial.stop + config.n_layer)
        read, opened, last = None, None, None
        caches: list[State | None] = [None] * 3
        if state is not None:
            read, opened, last = state[0]
            places = read[:, None] + places
            caches = [state[initial], state[middle], state[middle.stop :]]
        self._refuse_beyond(config.max_length, length + (0 if read is None else int(read.max())), "bytes")
        table = self.local_position_encoding
        x = self.token_embedding(bytes.long()) + (table[:length] if read is None else table[places])
        rotary = self._rotary(places, config.local_d_model // config.local_n_head)
        x, before = run_layers(self.initial_blocks, _sum, x, caches[0], rotary)
        opens = self._opens(bytes, places, last)
        x, between = self._run_global(x, opens, opened, caches[1])
        x, after = run_layers(self.final_blocks, self.logits.layer_norm, x, caches[2], rotary)
        if read is None or opened is None:
            return x, []
        counts = (read + length, opened + opens.sum(1), bytes[:, -1].long())
        return x, [counts, *before, *between, *after]

    def _opens(self, bytes: Tensor, places: Tensor, last: Tensor | None) -> Tensor:
        """Which bytes (B, L) open a patch, given their places (L) or (B, L) in their documents and the byte
        (B) before each row, which is not looked at where a document begins."""
        if self.config.patching == "fixed":
            return (places % int(self.config.bytes_per_chunk) == 0).expand(bytes.shape)
        previous = bytes[:, :1] if last is None else last[:, None]
        return spacelike(bytes) & ~spacelike(torch.cat([previous, bytes[:, :-1]], dim=1)) | (places == 0)

    def _run_global(
        self, x: Tensor, opens: Tensor, opened: Tensor | None, caches: State | None
    ) -> tuple[Tensor, State]:
        """x (B, L, d) with the global blocks' outputs added where `opens` (B, L), and their caches after it.

        Args:
            opened: (B), how many patches each row opened before.
        """
        if opened is not None and caches is not None:
            rows = opens.any(dim=1).nonzero().flatten()
            if len(rows) == 0:
                return x, caches
            if len(rows) < len(x):
                theirs = map_tensors(lambda cache: cache[rows], caches)
                some, theirs = self._run_global(x[rows], opens[rows], opened[rows], theirs)
                return x.index_copy(0, rows, some), map_tensors(partial(_put_rows, rows), caches, theirs)
        (batch, length, local), width = x.shape, self.config.d_model
        counts, table = opens.sum(1), self.global_position_encoding
        longest = self._longest(counts, length)
        slots = torch.where(opens, opens.cumsum(1) - 1, longest)
        order = torch.arange(length, device=x.device).expand(batch, length)
        chosen = slots.new_zeros(batch, longest + 1).scatter(1, slots, order)[:, :longest]
        chosen = (chosen + length * torch.arange(batch, device=x.device)[:, None]).flatten()
        places, filled, last = order[0, :longest], None, longest
        if opened is not None:
            places = opened[:, None] + places
            filled = Filled(places, int(opened.max()))
            last = int((opened + counts).max())
        self._refuse_beyond(len(table), last, "patches")
        y = pad(x.flatten(0, 1)[chosen].unflatten(0, (batch, longest)), (width - local, 0))
        # of a row with fewer patches, the places at the end are padding
        y = y + (table[:longest] if opened is None else table[places.clamp(max=len(table) - 1)])
        rotary = self._rotary(places, width // self.config.n_head)
        y, after = run_layers(self.global_blocks, _sum, y, caches, rotary, filled)
        added = y[..., width - local :].masked_fill((order[:, :longest] >= counts[:, None])[..., None], 0)
        return x.flatten(0, 1).index_add(0, chosen, added.flatten(0, 1)).view_as(x), _shortened(after, last)

    def _longest(self, counts: Tensor, length: int) -> int:
        """The most patches of a row. Fake tensors, of an estimate of memory, have as many as are expected."""
        if self.config.patching == "fixed" or isinstance(counts, FakeTensor):
            return min(length, math.ceil(length / self.config.bytes_per_chunk))
        return int(counts.max())

    def _rotary(self, places: Tensor, channels: int) -> Tensor:
        return rotary_factors(places, channels, self.config.rope_base, self.token_embedding.weight.dtype)

    def _refuse_beyond(self, known: int, needed: int, things: str) -> None:
        if needed > known:
            name = "max_length" if things == "bytes" else "global_max_length"
            raise UserError(
                f"this SpaceByte has positions for {known} {things} and was given {needed}; use shorter "
                f"windows, or train with a larger model.{name}"
            )

    def trimmed(self, state: State) -> State:
        """The state without padding that none of its rows needs: rows that were in one batch with others have
        global caches as long as theirs."""
        first = 1 + len(self.initial_blocks)
        last = first + self.config.n_layer
        most = max(state[0][1].tolist(), default=0)
        return [*state[:first], *_shortened(state[first:last], most), *state[last:]]

    def blocks(self) -> list[nn.Module]:
        return [*self.initial_blocks, *self.global_blocks, *self.final_blocks]

    @torch.no_grad()
    def chunk_rates(self, bytes: Tensor | bytes, document_start: Tensor | None = None) -> list[float]:
        """Patches per byte of these bytes (B, L), each row and each marked byte of which begins a document:
        a list of one, because the global blocks are one stage."""
        bytes = self.as_batch(bytes, document_start=document_start)
        places = torch.arange(bytes.shape[1], device=bytes.device).expand(bytes.shape)
        if document_start is not None:
            places = places - torch.where(document_start, places, 0).cummax(dim=1).values
        return [self._opens(bytes, places, None).double().mean().item()]

    def flops_per_byte(self, context_length: int, chunk_rates: Sequence[float] | None = None) -> FlopsPerByte:
        """The local blocks for every byte, and the global ones for every patch: by default as many as
        `bytes_per_chunk` says, else `chunk_rates[0]` per byte."""
        config = self.config
        rate = 1 / config.bytes_per_chunk if chunk_rates is None else chunk_rates[0]
        local, width = config.local_d_model, config.d_model
        each = _block_flops(local, config.local_d_ff, min(context_length, config.local_window))
        wide = _block_flops(width, config.d_ff, context_length * rate)
        return self.flops(config.local_n_layer * each + config.n_layer * wide * rate + 2 * local * VOCABULARY)

    def uses_per_byte(self, layer: str) -> float:
        return 1 / self.config.bytes_per_chunk if layer.startswith("global_blocks.") else 1.0


def spacelike(bytes: Tensor) -> Tensor:
    """Whether each byte is neither an ASCII letter or digit nor a UTF-8 continuation byte."""
    bytes = bytes.long()
    lower = bytes | 0x20  # of letters, the small one
    letter = (lower >= ord("a")) & (lower <= ord("z"))
    digit = (bytes >= ord("0")) & (bytes <= ord("9"))
    return ~(letter | digit | ((bytes >= 0x80) & (bytes < 0xC0)))


def _sum(residual: Tensor, update: Tensor | None) -> tuple[Tensor, None]:
    return residual if update is None else residual + update, None


def _shortened(caches: State, length: int) -> State:
    return map_tensors(lambda cache: cache[:, :length], caches)


def _put_rows(rows: Tensor, cache: Tensor, new: Tensor) -> Tensor:
    """The cache with these rows in it."""
    longest = max(cache.shape[1], new.shape[1])
    cache, new = (pad(part, (0, 0, 0, 0, 0, longest - part.shape[1])) for part in (cache, new))
    return cache.index_copy(0, rows, new.to(cache.dtype))


def _block_flops(width: int, inner: int | None, keys: float) -> float:
    """Of a position that sees `keys` keys: 2 per weight, and 4 d per key (scores and weighted values)."""
    return 2 * (4 * width**2 + 2 * width * (inner or 4 * width)) + 4 * keys * width


SpaceByteConfig.model = SpaceByte
