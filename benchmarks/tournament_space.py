"""What the tournament searches, for benchmarks/tournament.py: its sizes, its models, and their settings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mambabyte.config.composition import config_dir

RATE_STEP = 1.6  # the factor of one step of the learning rate
_LISTED = ("width", "depth", "batch_bytes", "context_length")  # settings of which a size lists the values


@dataclass(frozen=True)
class Point:
    """One place in the search space; what its numbers mean for a model is for `MODELS` to say."""

    width: int
    depth: int
    learning_rate: float
    batch_bytes: int
    context_length: int


@dataclass(frozen=True)
class Size:
    """The ranges that are searched, the same for every model, and what a run may cost.

    learning_rates: the lowest and the highest.
    head_width: channels of an attention head.
    trial_flops, final_flops: of training, of a trial and of a winner's run; final_seconds: of its other one.
    validate_bytes: by which a trial is judged, spread over the validation split.
    evaluate_bytes: of the validation split, by which a winner is judged; None: all.
    further: overrides of every run.
    """

    experiment: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    learning_rates: tuple[float, float]
    batch_bytes: tuple[int, ...]
    context_lengths: tuple[int, ...]
    head_width: int
    trial_flops: float
    final_flops: float
    final_seconds: float
    validate_bytes: int
    evaluate_bytes: int | None
    further: tuple[str, ...] = ()

    @property
    def centre(self) -> Point:
        """The first trial of every model."""
        low, high = self.learning_rates
        middle = [values[(len(values) - 1) // 2] for values in (self.widths, self.depths)]
        rate = rounded((low * high) ** 0.5)
        return Point(*middle, rate, *(values[len(values) // 2] for values in self._bytes))

    @property
    def _bytes(self) -> tuple[tuple[int, ...], ...]:
        return self.batch_bytes, self.context_lengths

    def drawn(self, count: int) -> list[Point]:
        """The centre, and a Latin hypercube (McKay et al., 1979): each range is cut into as many parts as
        there are other points, the learning rate's on a logarithmic scale, and each part has one point.
        Always the same for a count."""
        draws, (low, high), others = random.Random(0), self.learning_rates, count - 1
        rates = [rounded(low * (high / low) ** ((part + draws.random()) / others)) for part in range(others)]
        ranges = [self.widths, self.depths, *self._bytes]
        columns: list[list[Any]] = [
            [values[(2 * part + 1) * len(values) // (2 * others)] for part in range(others)]
            for values in ranges
        ]
        columns.insert(2, rates)
        for column in columns:
            draws.shuffle(column)
        return [self.centre, *(_point(*values) for values in zip(*columns, strict=True))]

    def moves(self, point: Point) -> dict[tuple[str, int], Point]:
        """The points one step from a point, by the setting that differs and its direction: to the next value
        of its list, or a learning rate `RATE_STEP` times as high or as low, at most to the end of its range.
        A context that is longer than a step lengthens the step to one window."""
        found: dict[tuple[str, int], Point] = {}
        for name, values in zip(_LISTED, (self.widths, self.depths, *self._bytes), strict=True):
            place = values.index(getattr(point, name))
            for step in (-1, 1):
                if 0 <= place + step < len(values):
                    found[name, step] = _point(**{**asdict(point), name: values[place + step]})
        low, high = self.learning_rates
        for step in (-1, 1):
            rate = min(high, max(low, rounded(point.learning_rate * RATE_STEP**step)))
            found["learning_rate", step] = replace(point, learning_rate=rate)
        return {move: other for move, other in found.items() if other != point}


def _point(width: int, depth: int, learning_rate: float, batch_bytes: int, context_length: int) -> Point:
    """A step reads one window at least."""
    return Point(width, depth, learning_rate, max(batch_bytes, context_length), context_length)


def rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


_ON_A_CPU = ("trainer.accelerator=cpu", "trainer.threads=1", "trainer.precision=fp32")
_ON_A_GPU = ("trainer.precision=bf16", "trainer.micro_batch_size=auto", "trainer.on_spike=skip")
SIZES = {
    # With widths from 32 and steps from 2,048 bytes, all best points had the smallest of both, and learning
    # rates from 0.0035 to 0.013.
    "cpu": Size(
        "compute_matched",
        widths=(16, 32, 48, 64),
        depths=(2, 4, 6),
        learning_rates=(2e-3, 2e-2),
        batch_bytes=(256, 512, 1024),
        context_lengths=(128, 256, 512, 1024),
        head_width=16,
        trial_flops=4e11,
        final_flops=1e12,
        final_seconds=20,
        validate_bytes=65_536,
        evaluate_bytes=400_000,
        further=_ON_A_CPU,
    ),
    "60m": Size(
        "compute_matched_60m",
        widths=(384, 512, 640, 768),
        depths=(6, 8, 12, 16),
        learning_rates=(2e-4, 4e-3),
        batch_bytes=(65_536, 131_072, 262_144),
        context_lengths=(1024, 2048, 4096),
        head_width=64,
        trial_flops=2e16,
        final_flops=1e17,
        final_seconds=1800,
        validate_bytes=2_097_152,
        evaluate_bytes=10_000_000,
        further=_ON_A_GPU,
    ),
    "350m": Size(
        "compute_matched_350m",
        widths=(512, 768, 1024, 1280),
        depths=(8, 12, 16, 24),
        learning_rates=(1e-4, 2e-3),
        batch_bytes=(131_072, 262_144, 524_288),
        context_lengths=(2048, 4096, 8192),
        head_width=64,
        trial_flops=2e17,
        final_flops=2e18,
        final_seconds=7200,
        validate_bytes=2_097_152,
        evaluate_bytes=10_000_000,
        further=_ON_A_GPU,
    ),
}


@dataclass(frozen=True)
class Model:
    """A model of the tournament.

    choice: of the group `model`.
    shape: the overrides for a width, a depth, the width of a head and a context.
    """

    name: str
    choice: str
    shape: Callable[[Size, Point], Sequence[str]]

    @property
    def missing(self) -> bool:
        return not (config_dir() / "model" / f"{self.choice}.yaml").exists()


def _stack(size: Size, point: Point) -> list[str]:
    return [f"model.d_model={point.width}", f"model.n_layer={point.depth}"]


def _attention(size: Size, point: Point) -> list[str]:
    return [*_stack(size, point), f"model.n_head={point.width // size.head_width}"]


def _perceiver_ar(size: Size, point: Point) -> list[str]:
    return [*_attention(size, point), f"model.n_latents={point.context_length // 4}"]


def _in_two(size: Size, point: Point) -> list[str]:
    """MegaByte and SpaceByte: half the layers read bytes, and half of them patches, 1.5 times as wide."""
    heads, half = point.width // size.head_width, point.depth // 2
    inner = [f"model.d_model={point.width * 3 // 2}", f"model.n_layer={half}", f"model.n_head={heads}"]
    outer = [f"{each.replace('model.', 'model.local_')}" for each in _stack(size, point)[:1]]
    outer += [f"model.local_n_layer={half}", f"model.local_n_head={heads}"]
    return [*inner, *outer, f"model.max_length={point.context_length}"]


def _hnet(size: Size, point: Point) -> list[str]:
    """One stage of chunks: half the depth in each of encoder, decoder and the Transformer between them,
    which is 1.5 times as wide. (A layer of Mamba-2 has half of a Transformer's parameters.)"""
    heads, half, head = point.width // size.head_width, point.depth // 2, size.head_width
    return [
        f"model.arch_layout=[m{half},[T{half}],m{half}]",
        f"model.d_model=[{point.width},{point.width * 3 // 2}]",
        f"model.d_intermediate=[0,{4 * point.width}]",
        f"model.ssm_cfg.headdim={min(64, 2 * head)}",
        f"model.attn_cfg.num_heads=[{heads},{heads}]",
        f"model.attn_cfg.rotary_emb_dim=[{head // 2},{head * 3 // 4}]",
    ]


MODELS = {
    model.choice: model
    for model in (
        Model("MambaByte", "mambabyte", _stack),
        Model("gated S4D", "gated_s4d", _stack),
        Model("Transformer", "transformer", _attention),
        Model("MegaByte", "megabyte", _in_two),
        Model("Perceiver AR", "perceiver_ar", _perceiver_ar),
        Model("SpaceByte", "spacebyte", _in_two),
        Model("H-Net", "hnet", _hnet),
        Model("LSTM", "lstm", _stack),
    )
}


def settings_of(model: Model, size: Size, point: Point) -> list[str]:
    """The overrides that train a model at a point, but for its budget, seed, data and warm-up."""
    own = [f"experiment={size.experiment}", f"model={model.choice}", "budget.parameters=null"]
    own += [f"context_length={point.context_length}", *model.shape(size, point)]
    own += [f"optimizer.learning_rate={point.learning_rate:g}"]
    own += [f"trainer.global_batch_bytes={point.batch_bytes}"]
    if not any(each.startswith("trainer.micro_batch_size=") for each in size.further):
        own += [f"trainer.micro_batch_size={point.batch_bytes // point.context_length}"]
    return [*own, *size.further]


def described(point: Point) -> dict[str, Any]:
    """The columns of a point."""
    return asdict(point)
