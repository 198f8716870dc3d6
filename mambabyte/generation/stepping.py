"""Going on from a state, for many rows at once: bytes in, logits out, with a way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.models import ByteLM, MambaByte
from mambabyte.models.byte_lm import State
from mambabyte.models.states import join_rows, row_shapes, select_rows
from mambabyte.ops.step import STORAGE, step_backend
from mambabyte.ops.step.rows import NO_WINDOW, check_batch, check_counts, check_rows

READ_BYTES = 1024  # of each row that `read` gives the model at a time


class Stepper(Protocol):
    """The state of a batch of rows, which goes on with each call. B rows, L bytes of this call.

    Bytes are integer tensors or Python's `bytes`, as `ByteLM` takes them. What a call refuses leaves
    everything as it was.

    Attributes:
        hidden: with `keep_hidden`, what the model's heads have read for the logits that the last step or
            window returned: (B, d) or (B, L, d).
    """

    hidden: Tensor | None

    def __call__(self, byte: Tensor | bytes) -> Tensor:
        """Logits (B, 256) after one more byte (B,) of each row."""

    def window(self, bytes: Tensor | bytes) -> Tensor:
        """Logits (B, L, 256) after each of L more bytes (B, L) of each row, which `keep` can take back until
        the next call that reads, selects or appends."""

    def keep(self, counts: Sequence[int]) -> None:
        """Go on from the state after the first `counts[b]` bytes, 0 to L, of each row b's last window.

        Raises:
            ValueError: there is no window to take bytes back from, or the counts do not fit it.
        """

    def read(self, bytes: Tensor | bytes) -> Tensor:
        """Logits (B, 256) after L more bytes (B, L) of each row, in memory that does not grow with L."""

    def state(self, rows: Sequence[int] | None = None) -> State:
        """A copy of the state of these rows, or of all, as `ByteLM.prefill` returns it.

        Raises:
            ValueError: the rows have caches of different lengths: ask for fewer at a time.
        """

    def rows(self) -> int:
        """B."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one that is named several times goes on as several rows."""

    def append(self, state: State) -> None:
        """Let the rows of another state follow at the end."""


@torch.no_grad()
def stepper_for(model: ByteLM, state: State, weights: str = "fp32", keep_hidden: bool = False) -> Stepper:
    """What goes on from the state; it leaves the state itself alone.

    Args:
        weights: as for `generate`, but for CUDA, where only fp32 is to be had.

    Raises:
        UserError: such weights are not to be had for this model here.
    """
    check_weights(model, weights)
    if isinstance(model, MambaByte) and step_backend(model.lm_head.weight) == "cpu":
        return model.stepper(state, weights, keep_hidden)  # type: ignore[return-value]  # a TritonStepper on CUDA only
    if weights != "fp32":
        raise UserError(
            f"weights={weights} is not to be had for this on CUDA: use weights=fp32, or device=cpu"
        )
    return GenericStepper(model, state, keep_hidden)


@torch.no_grad()
def check_weights(model: ByteLM, weights: str) -> None:
    """Raises UserError if this model cannot be stepped with such weights here."""
    backend = step_backend(model.lm_head.weight) if isinstance(model, MambaByte) else "reference"
    if weights not in STORAGE:
        raise UserError(f"weights must be {', '.join(STORAGE[:-1])} or {STORAGE[-1]}, not {weights}")
    if weights == "int8" and backend == "triton":
        raise UserError("weights=int8 is of the CPU's kernels: use weights=bf16 on CUDA, or device=cpu")
    if weights != "fp32" and backend == "reference":
        cuda = "" if weights == "int8" else ", or on CUDA and Triton"
        raise UserError(
            f"weights={weights} needs a MambaByte model in fp32 on a CPU and compiled kernels{cuda} (see "
            "mambabyte doctor); use weights=fp32"
        )


class _Group(NamedTuple):
    """Rows that run as one batch, because their states' tensors have the same shapes."""

    rows: list[int]  # their places among all rows
    state: State


class GenericStepper:
    """A `Stepper` by a model's own `prefill` and `step`, which never change the state they are given: the one
    before the last window is not forgotten, and `keep` reads the accepted bytes again from there.

    Caches of rows that kept different numbers of bytes differ in length. Such rows run one group after the
    other until their shapes agree again.
    """

    def __init__(self, model: ByteLM, state: State, keep_hidden: bool = False) -> None:
        self._model, self._keeps_hidden = model, keep_hidden
        self.hidden: Tensor | None = None
        self._rows = 0
        self._groups: list[_Group] = []
        self._window: tuple[list[_Group], Tensor] | None = None  # the groups before it, and its bytes
        self.append(state)

    @torch.no_grad()
    def __call__(self, byte: Tensor | bytes) -> Tensor:
        column = self._model.as_column(byte)
        if self._keeps_hidden:
            (logits, self.hidden), groups = self._run_with_hidden(column)
            logits, self.hidden = logits[:, 0], self.hidden[:, 0]
        else:
            logits, groups = self._run(lambda part, state: self._model.step(part[:, 0], state), column)
        self._go_on(groups)
        return logits

    @torch.no_grad()
    def window(self, bytes: Tensor | bytes) -> Tensor:
        bytes, before = self._model.as_batch(bytes), self._groups
        if self._keeps_hidden:
            (logits, self.hidden), groups = self._run_with_hidden(bytes)
        else:
            logits, groups = self._run(self._model.prefill, bytes)
        self._go_on(groups)
        self._window = before, bytes.clone()
        return logits

    @torch.no_grad()
    def keep(self, counts: Sequence[int]) -> None:
        if self._window is None:
            raise ValueError(NO_WINDOW)
        before, bytes = self._window
        length, groups = bytes.shape[1], []
        check_counts(counts, self._rows, length)
        for count in sorted(set(counts)):
            rows = [row for row in range(self._rows) if counts[row] == count]
            for group in _taken(self._groups if count == length else before, rows, rows):
                if 0 < count < length:
                    _, state = self._model.prefill(bytes[group.rows, :count], group.state)
                    group = _Group(group.rows, state)
                groups.append(group)
        self._go_on(groups)

    @torch.no_grad()
    def read(self, bytes: Tensor | bytes) -> Tensor:
        logits, groups = self._run(self._read, self._model.as_batch(bytes))
        self._go_on(groups)
        return logits

    def _read(self, bytes: Tensor, state: State) -> tuple[Tensor, State]:
        for part in bytes.split(READ_BYTES, dim=1):
            logits, state = self._model.prefill(part, state)
        return logits[:, -1], state

    def state(self, rows: Sequence[int] | None = None) -> State:
        rows = range(self._rows) if rows is None else rows
        check_rows(rows, self._rows)
        groups = _joined(_taken(self._groups, rows, range(len(rows))))
        if not groups:
            return self._model.initial_state(0)
        if len(groups) > 1:
            raise ValueError("these rows' caches have different lengths: ask for the state of fewer rows")
        # Selected even if that changes nothing: a copy, and no view of a cache's larger buffer.
        (group,) = groups
        return self._model.trimmed(select_rows(group.state, _order(group.rows)))

    def rows(self) -> int:
        return self._rows

    def select(self, rows: Sequence[int]) -> None:
        check_rows(rows, self._rows)
        groups = _taken(self._groups, rows, range(len(rows)))
        self._rows = len(rows)
        self._go_on(groups)

    def append(self, state: State) -> None:
        count = len(state[0][0])
        new = [_Group(list(range(self._rows, self._rows + count)), state)] if count else []
        groups = self._groups + new
        self._rows += count
        self._go_on(groups)

    def _run(
        self, function: Callable[[Tensor, State], tuple[Tensor, State]], bytes: Tensor
    ) -> tuple[Tensor, list[_Group]]:
        """The logits of all rows in their order, and the groups after the bytes."""
        check_batch(len(bytes), self._rows)
        logits, groups = [], []
        for group in self._groups:
            part, state = function(bytes[group.rows], group.state)
            logits.append(part)
            groups.append(_Group(group.rows, state))
        return _in_order(logits, groups), groups

    def _run_with_hidden(self, bytes: Tensor) -> tuple[tuple[Tensor, Tensor], list[_Group]]:
        """As `_run` with `prefill`, which computes the same, and what the heads have read."""
        hidden = []

        def prefill(part: Tensor, state: State) -> tuple[Tensor, State]:
            its, after = self._model.prefill_hidden(part, state)
            hidden.append(its)
            return self._model.lm_head(its), after

        logits, groups = self._run(prefill, bytes)
        return (logits, _in_order(hidden, groups)), groups

    def _go_on(self, groups: list[_Group]) -> None:
        self._groups, self._window = _joined(groups), None


def _taken(groups: list[_Group], rows: Sequence[int], places: Iterable[int]) -> list[_Group]:
    """Groups of these rows alone, which have these places in them."""
    result = []
    for group in groups:
        local = {row: index for index, row in enumerate(group.rows)}
        chosen = [(place, local[row]) for row, place in zip(rows, places, strict=True) if row in local]
        if not chosen:
            continue
        own = [index for _, index in chosen]
        state = group.state if own == list(range(len(group.rows))) else select_rows(group.state, own)
        result.append(_Group([place for place, _ in chosen], state))
    return result


def _joined(groups: list[_Group]) -> list[_Group]:
    """The same rows in as few groups as their shapes allow."""
    alike: dict[object, list[_Group]] = {}
    for group in groups:
        alike.setdefault(row_shapes(group.state), []).append(group)
    return [
        _Group([row for group in some for row in group.rows], join_rows([group.state for group in some]))
        for some in alike.values()
    ]


def _in_order(parts: Sequence[Tensor], groups: Sequence[_Group]) -> Tensor:
    """One tensor of all rows in their order, from one of each group's."""
    places = [row for group in groups for row in group.rows]
    if len(parts) == 1 and places == list(range(len(places))):
        return parts[0]
    return torch.cat(list(parts))[_order(places)]


def _order(places: Sequence[int]) -> list[int]:
    """The indices that sort these places."""
    return sorted(range(len(places)), key=places.__getitem__)
