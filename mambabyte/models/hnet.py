"""H-Net (arXiv 2507.07955): a hierarchy whose chunks are learned with the rest of it, on raw bytes.

    B batch   L positions of a stage   S stages that make chunks   D_s width of stage s

Stage 0 reads bytes and stage s + 1 the chunks of stage s. A stage encodes its positions, its router says
which of them begin chunks, and the next stage runs on these alone (the innermost has layers and no router).
What that makes of each chunk is smoothed over the chunks and given to every position up to the next chunk.
The decoder runs on this plus a projection of the encoder's output. A wider inner stage fills its vectors up
with trained numbers, which are cut off again.

Training minimises beside the cross entropy, for each stage that makes chunks, the ratio loss (section 2.2)

    N / (N - 1) ((N - 1) F G + (1 - F) (1 - G))

with F the share of positions that begin chunks, G the mean of the router's p, and N the positions that a
chunk should have. Parameters have the names and shapes of the authors' code. There, bytes 254 and 255 stand
for a text's beginning and end; here a document's first byte begins a chunk, whatever it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mambabyte.config.settings import setting, shown, to_plain
from mambabyte.errors import UserError
from mambabyte.models.byte_lm import NOT_SCORED, VOCABULARY, FlopsPerByte, State, TrainingLoss
from mambabyte.models.documentwise import DocumentwiseByteLM
from mambabyte.models.hnet_layers import (
    LETTERS,
    AttentionSettings,
    Boundaries,
    Isotropic,
    RoutingModule,
    SSMSettings,
    among_positions,
    at_places,
    chunk_starts,
    joined_by_row,
    ratio_losses,
    smoothed,
    straight_through,
)
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layers import as_residual
from mambabyte.models.layout import SHOWN, parse_layout
from mambabyte.models.states import select_rows

INITIALIZER_STD = 0.02
_MOST_STAGES = 16
_UNTRAINED_RATIO = 2.0  # positions that a chunk of a router with random weights has, about


@dataclass
class HNetConfig(ByteLMConfig):
    """The keys of the authors' JSON configs, and what training needs beside them. Settings of stages have the
    outermost first."""

    arch_layout: list[Any] = field(default_factory=lambda: ["m3", ["T2"], "m3"])
    d_model: tuple[int, ...] = setting(default=(128, 192), at_least=1, at_most=10**6)
    d_intermediate: tuple[int, ...] = setting(default=(0, 512), at_least=0, at_most=10**7)
    ssm_cfg: SSMSettings = field(default_factory=SSMSettings)
    attn_cfg: AttentionSettings = field(default_factory=AttentionSettings)
    bytes_per_chunk: tuple[float, ...] = setting(default=(6.0,), above=1, at_most=10**9)
    ratio_loss_weight: float = setting(default=0.03, at_least=0, at_most=10**6)
    learning_rate_multipliers: tuple[float, ...] | None = setting(default=None, above=0, at_most=10**6)
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        self.arch_layout = to_plain(self.arch_layout)  # lists, as a checkpoint has them, of tuples too
        layouts = self._layouts()
        stages = len(layouts)
        for name, values in self._of_each_stage():
            needed = stages - 1 if name == "bytes_per_chunk" else stages
            if len(values) != needed:
                raise UserError(
                    f"model.arch_layout has {stages} {'level' if stages == 1 else 'levels'}, so model.{name} "
                    f"needs {needed} {'value' if needed == 1 else 'values'}, not {shown(values)}"
                )
        if any(inner < outer for outer, inner in pairwise(self.d_model)):
            raise UserError(f"model.d_model must not fall from stage to stage, as in {shown(self.d_model)}")
        if any(ratio <= 1 for ratio in self.ratios):
            raise UserError(
                f"model.bytes_per_chunk must rise from stage to stage, not {shown(self.bytes_per_chunk)}"
            )
        for stage, layout in enumerate(layouts):
            letters = {
                letter for text in layout if isinstance(text, str) for letter in parse_layout(text, LETTERS)
            }
            self._check_stage(stage, letters)

    def _check_stage(self, stage: int, letters: set[str]) -> None:
        width, (heads, _, rotated) = self.d_model[stage], self.attn_cfg.of_stage(stage)
        mamba = self.ssm_cfg.of_stage(stage)
        if self.d_intermediate[stage] and not letters & set("MT"):
            raise UserError(f"stage {stage} has no MLP (a capital): set model.d_intermediate[{stage}] to 0")
        if letters & set("MT") and not self.d_intermediate[stage]:
            raise UserError(
                f"the MLPs of stage {stage} need a width: set model.d_intermediate[{stage}] above 0, or use "
                "small letters in model.arch_layout"
            )
        if letters & set("tT") and (width % heads or rotated % 2 or rotated > width // heads):
            raise UserError(
                f"attention in stage {stage} of width {width} needs model.attn_cfg.num_heads that divide it "
                f"and an even rotary_emb_dim of at most a head's channels, not {heads} and {rotated}"
            )
        if letters & set("mM") and mamba.expand * width % mamba.head_dim:
            raise UserError(
                f"Mamba-2's {mamba.expand * width} inner channels in stage {stage} are no whole heads of "
                f"model.ssm_cfg.headdim={mamba.head_dim}"
            )

    def _of_each_stage(self) -> list[tuple[str, tuple[float, ...]]]:
        own = {name: getattr(self, name) for name in ("d_model", "d_intermediate", "bytes_per_chunk")}
        own["learning_rate_multipliers"] = self.learning_rate_multipliers
        for part in ("ssm_cfg", "attn_cfg"):
            section = getattr(self, part)
            own |= {f"{part}.{f.name}": getattr(section, f.name) for f in fields(section)}
        return [(name, values) for name, values in own.items() if isinstance(values, tuple)]

    def _layouts(self) -> list[list[Any]]:
        """What each stage has of `arch_layout`: [encoder, inner stages, decoder], and at last [layers]."""
        layouts, layout = [], self.arch_layout
        while True:
            whole = isinstance(layout, list) and len(layout) in (1, 3)
            if not whole or not all(isinstance(text, str) for text in (layout[0], layout[-1])):
                raise UserError(
                    "model.arch_layout is [encoder, [..], decoder] with layouts such as m4 around an inner "
                    f"stage, and the innermost [layers]; {shown(self.arch_layout)[:SHOWN]} is not"
                )
            layouts.append(layout)
            if len(layout) == 1:
                return layouts
            if len(layouts) == _MOST_STAGES:
                raise UserError(f"model.arch_layout has more than {_MOST_STAGES} levels")
            layout = layout[1]

    def layout_of(self, stage: int) -> list[Any]:
        """[encoder, the inner stages, decoder] of a stage, or [layers] of the innermost."""
        return self._layouts()[stage]

    @property
    def ratios(self) -> list[float]:
        """The positions of each stage that a chunk of it should have: N in the ratio loss."""
        return [inner / outer for outer, inner in pairwise((1.0, *self.bytes_per_chunk))]

    @property
    def n_layer(self) -> int:
        """Of all stages."""
        texts = [text for layout in self._layouts() for text in layout if isinstance(text, str)]
        return sum(len(parse_layout(text, LETTERS)) for text in texts)


class Stage(nn.Module):
    """A stage and all within it: (B, L, D of the stage around it) -> the same.

    The state begins with (positions read (B), the last encoded one (B, D), the last smoothed chunk (B, D)),
    of the innermost stage the positions alone. Then follow the encoder's states, the inner stage's and the
    decoder's. Rows may have read different numbers of chunks; their caches are padded at the end.
    """

    def __init__(self, config: HNetConfig, stage: int) -> None:
        super().__init__()
        width, layout = config.d_model[stage], config.layout_of(stage)
        self.ratio = 0.0  # the positions that a chunk should have
        if len(layout) == 1:
            self.main_network: Stage | Isotropic = Isotropic(config, stage, layout[0])
        else:  # in the order of their use
            self.ratio = config.ratios[stage]
            self.encoder = Isotropic(config, stage, layout[0])
            self.residual_proj = nn.Linear(width, width)
            nn.init.zeros_(self.residual_proj.weight)
            nn.init.zeros_(self.residual_proj.bias)
            self.routing_module = RoutingModule(width)
            self.main_network = Stage(config, stage + 1)
            self.decoder = Isotropic(config, stage, layout[2])
        added = width - config.d_model[stage - 1] if stage else 0
        self.pad_dimension = nn.Parameter(torch.zeros(added)) if added else None

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State, list[Boundaries]]:
        """The output, the state after it, and the boundaries of all routers, among this stage's positions.
        With a state there are no boundaries, and without one no state."""
        length, width = x.shape[1:]
        if self.pad_dimension is not None:
            x = torch.cat([x, self.pad_dimension.expand(*x.shape[:2], -1)], dim=-1)
        read = None if state is None else state[0][0]
        if isinstance(self.main_network, Isotropic):
            x, after = self.main_network(x, None if state is None else state[1:], read)
            return x[..., :width], after if read is None else [(read + length,), *after], []
        parts: tuple[State | None, ...] = (None,) * 3 if state is None else self._split(state[1:])
        last, before = (None, None) if state is None else state[0][1:]
        encoded, encoder_after = self.encoder(x, parts[0], read)
        p, begins = self.routing_module(encoded, last, read)
        number = begins.cumsum(1)  # chunks up to and including each position
        most = self._most(number[:, -1], length)
        places = chunk_starts(number, begins, most)
        exists = torch.arange(most, device=x.device) < number[:, -1:]
        chunks, inner_after, deeper = self._inner(at_places(encoded, places), number[:, -1], parts[1])
        before = torch.zeros_like(as_residual(encoded[:, 0])) if before is None else before
        chunks = smoothed(chunks, p.gather(1, places), exists, before) if most else before.unsqueeze(1)[:, :0]
        if state is not None:  # the first positions may belong to a chunk that began before them
            chunks = torch.cat([before.unsqueeze(1).to(chunks.dtype), chunks], dim=1)
        x = at_places(chunks, number if state is not None else number - 1)
        x = x * straight_through(p, begins).unsqueeze(-1) + self._residual(encoded)
        x, decoder_after = self.decoder(x, parts[2], read)
        if read is None:
            return x[..., :width], [], [Boundaries(p, begins), *among_positions(deeper, number, begins)]
        own = (read + length, encoded[:, -1], chunks[:, -1])
        return x[..., :width], [own, *encoder_after, *inner_after, *decoder_after], []

    def _residual(self, encoded: Tensor) -> Tensor:
        """In fp32, or in what the model's weights are: never rounded by autocast."""
        with torch.autocast(encoded.device.type, enabled=False):
            return as_residual(self.residual_proj(encoded.to(self.residual_proj.weight.dtype)))

    def _most(self, counts: Tensor, length: int) -> int:
        """The most chunks of any row, which the host has to know. Tensors without data, of an estimate of
        memory, have those that there should be, or those of the first steps if they are more."""
        if torch._subclasses.fake_tensor.is_fake(counts):
            return math.ceil(length / min(self.ratio, _UNTRAINED_RATIO))
        return int(counts.max())

    def _inner(
        self, x: Tensor, counts: Tensor, state: State | None
    ) -> tuple[Tensor, State, list[Boundaries]]:
        """The inner stage on chunks (B, M, D), of which each row has `counts` (B). From a state, rows run
        together that have as many chunks now and had as many before; nothing is computed on padding."""
        assert isinstance(self.main_network, Stage)
        if state is None:
            return self.main_network(x, None)
        groups: dict[tuple[int, int], list[int]] = {}
        for row, key in enumerate(zip(counts.tolist(), state[0][0].tolist(), strict=True)):
            groups.setdefault(key, []).append(row)
        out, states = x.new_zeros(x.shape), []
        for (count, _), rows in groups.items():
            part = state if len(groups) == 1 else select_rows(state, rows)
            if count:
                part = self.main_network.trimmed(part)
                made, part, _ = self.main_network(x[rows, :count] if len(groups) > 1 else x[:, :count], part)
                if len(groups) == 1:
                    return made, part, []
                out = out.to(made.dtype)
                out[rows, :count] = made
            states.append(part)
        return out, states[0] if len(states) == 1 else joined_by_row(states, list(groups.values())), []

    def _split(self, states: State) -> tuple[State, State, State]:
        """What follows a state's first entry: of the encoder, the inner stage and the decoder."""
        first, last = len(self.encoder.layers), len(states) - len(self.decoder.layers)
        return states[:first], states[first:last], states[last:]

    def trimmed(self, state: State) -> State:
        """The state with caches that end with the positions of the row that has read most."""
        read = int(state[0][0].max()) if len(state[0][0]) else 0
        if isinstance(self.main_network, Isotropic):
            return [state[0], *self.main_network.trimmed(state[1:], read)]
        encoder, inner, decoder = self._split(state[1:])
        inner = self.main_network.trimmed(inner)
        return [state[0], *self.encoder.trimmed(encoder, read), *inner, *self.decoder.trimmed(decoder, read)]

    def initial_state(self, batch_size: int) -> State:
        stacks = self.stacks()
        weight = stacks[0].rmsnorm.weight
        read = weight.new_zeros(batch_size, dtype=torch.int64)
        if isinstance(self.main_network, Isotropic):
            return [(read,), *self.main_network.initial_states(batch_size)]
        nothing = weight.new_zeros(batch_size, len(weight))
        ends = [stack.initial_states(batch_size) for stack in stacks]
        return [(read, nothing, nothing), *ends[0], *self.main_network.initial_state(batch_size), *ends[1]]

    def stacks(self) -> list[Isotropic]:
        """Those of this stage alone."""
        if isinstance(self.main_network, Isotropic):
            return [self.main_network]
        return [self.encoder, self.decoder]

    def inner_stages(self) -> list[Stage]:
        """This stage and those within, the outermost first."""
        inner = [] if isinstance(self.main_network, Isotropic) else self.main_network.inner_stages()
        return [self, *inner]

    def blocks(self) -> list[nn.Module]:
        if isinstance(self.main_network, Isotropic):
            return list(self.main_network.layers)
        return [*self.encoder.layers, *self.main_network.blocks(), *self.decoder.layers]


class HNet(DocumentwiseByteLM):
    """The state is that of the outermost stage."""

    config: HNetConfig

    def __init__(self, config: HNetConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(VOCABULARY, config.d_model[0])
        self.backbone = Stage(config, 0)
        self.lm_head = nn.Linear(config.d_model[0], VOCABULARY, bias=False)
        self._stages = len(config.d_model)
        stages = self.backbone.inner_stages()
        self.recurrent = all(stack.recurrent for stage in stages for stack in stage.stacks())
        residuals = 0
        for stage in stages:
            residuals += sum(stack.height for stack in stage.stacks())
            for stack in stage.stacks():
                stack.initialise(INITIALIZER_STD, residuals)
        nn.init.normal_(self.lm_head.weight, std=INITIALIZER_STD)
        nn.init.normal_(self.embeddings.weight, std=1.0)
        if config.tie_embeddings:
            self.lm_head.weight = self.embeddings.weight
        self.add_further_heads()
        if config.learning_rate_multipliers is not None:
            for multiplier, module in zip(config.learning_rate_multipliers, [self, *stages[1:]], strict=True):
                for parameter in module.parameters():
                    parameter._learning_rate_multiplier = multiplier  # type: ignore[attr-defined]

    @property
    def kind(self) -> str:
        return "H-Net"

    def initial_state(self, batch_size: int) -> State:
        return self.backbone.initial_state(batch_size)

    def _read(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        hidden, after, _ = self.backbone(self.embeddings(bytes.long()), state)
        return hidden, after

    def trimmed(self, state: State) -> State:
        return self.backbone.trimmed(state)

    def _read_with_boundaries(self, bytes: Tensor, state: State | None) -> list[Tensor]:
        """What the heads read, and p and whether a chunk begins of each router."""
        hidden, _, boundaries = self.backbone(self.embeddings(bytes.long()), state)
        return [hidden, *(tensor for each in boundaries for tensor in each)]

    def training_loss(
        self, bytes: Tensor, targets: Tensor, document_start: Tensor | None = None
    ) -> TrainingLoss:
        """The cross entropy, and the ratio losses times `ratio_loss_weight`, with F and G of all bytes up to
        the last scored one of each row: what follows is padding. Further heads add theirs."""
        hidden, *found = self.each_document(self._read_with_boundaries, bytes, document_start=document_start)
        nats, further = self.loss_of(hidden, targets, document_start)
        if not found or not self.config.ratio_loss_weight:
            return TrainingLoss(nats, further)
        read = (targets != NOT_SCORED).flip(1).cumsum(1).flip(1) > 0
        loss = self.config.ratio_loss_weight * ratio_losses(_pairs(found), self.config.ratios, read).sum()
        return TrainingLoss(nats, loss if further is None else further + loss)

    @torch.no_grad()
    def chunk_rates(self, bytes: Tensor | bytes, document_start: Tensor | None = None) -> list[float]:
        """How many chunks each byte makes in each stage that makes them, the outermost first, on these bytes
        (B, L)."""
        _, *found = self.each_document(self._read_with_boundaries, bytes, document_start=document_start)
        if not found:
            return []
        return torch.stack([each.begins.double().mean() for each in _pairs(found)]).tolist()

    def blocks(self) -> list[nn.Module]:
        return self.backbone.blocks()

    def flops_per_byte(self, context_length: int, chunk_rates: Sequence[float] | None = None) -> FlopsPerByte:
        """A stage's layers, residual projection and router at each of its positions, and the head.

        Args:
            chunk_rates: chunks per byte of each stage that makes them, as `chunk_rates` measures them; None:
                those of the config's `bytes_per_chunk`.

        Raises:
            ValueError: another number of them.
        """
        rates = self._expected_rates if chunk_rates is None else [1.0, *chunk_rates]
        total = 2.0 * self.config.d_model[0] * VOCABULARY
        for rate, stage in zip(rates, self.backbone.inner_stages(), strict=True):
            layers = sum(stack.flops(context_length * rate) for stack in stage.stacks())
            projections = 0 if isinstance(stage.main_network, Isotropic) else 3
            total += rate * (layers + projections * 2 * len(stage.stacks()[0].rmsnorm.weight) ** 2)
        return self.flops(total)

    def uses_per_byte(self, layer: str) -> float:
        inner = layer.count("main_network.")  # the innermost stage has one more, which is its layers
        return self._expected_rates[min(inner, self._stages - 1)]

    @property
    def _expected_rates(self) -> list[float]:
        """Positions of each stage per byte."""
        return [1.0, *(1 / size for size in self.config.bytes_per_chunk)]


def _pairs(tensors: Sequence[Tensor]) -> list[Boundaries]:
    return [Boundaries(p, begins) for p, begins in zip(tensors[::2], tensors[1::2], strict=True)]


HNetConfig.model = HNet
