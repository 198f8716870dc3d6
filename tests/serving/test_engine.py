"""The engine's thread: who is served when, what a client that leaves frees, and what a fault takes along."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.generation import Batch, Row, Sampler, generate
from mambabyte.models import ByteLM
from mambabyte.serving import Limits
from mambabyte.serving.engine import PIECE, Ended, Engine, Event, Failed, Job, PromptRead, Written
from mambabyte.serving.errors import ApiError

LONG = b"a long prompt. " * 200


class Recorder:
    """What was told, by all jobs, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Event]] = []
        self._told = threading.Condition()

    def job(self, name: str, prompt: bytes, length: int, rows: int = 1, **options: bool) -> Job:
        texts = [Row(Sampler(1.0, sample=i), length) for i in range(rows)]
        return Job([(prompt, texts)], lambda event: self._tell(name, event), **options)

    def _tell(self, name: str, event: Event) -> None:
        with self._told:
            self.events.append((name, event))
            self._told.notify_all()

    def of(self, name: str, kind: type) -> list[Event]:
        return [event for who, event in self.events if who == name and isinstance(event, kind)]

    def first(self, name: str, kind: type) -> int:
        return next(
            i for i, (who, event) in enumerate(self.events) if who == name and isinstance(event, kind)
        )

    def wait_for(self, done: Callable[[], object]) -> None:
        with self._told:
            assert self._told.wait_for(done, 60), self.events[-5:]

    def wait_for_end(self, *names: str) -> None:
        self.wait_for(lambda: all(self.of(name, Ended) or self.of(name, Failed) for name in names))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make(model: ByteLM) -> Iterator[Callable[..., Engine]]:
    """make(max_rows=1, ...) is an engine that has not started."""
    engines = []

    def make(new_batch: Callable[[], Batch] | None = None, **limits: int) -> Engine:
        engines.append(Engine(model, new_batch or (lambda: Batch(model)), Limits(**limits)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
        if engine._thread.ident:
            engine.join()


def text(recorder: Recorder, name: str) -> bytes:
    return b"".join(event.text for event in recorder.of(name, Written))


def test_a_long_prompt_holds_up_neither_writing_nor_a_short_prompt(
    make: Callable, recorder: Recorder, model: ByteLM
) -> None:
    engine = make()
    pieces = -(-len(LONG) // PIECE)
    engine.submit(recorder.job("writing", b"ab", pieces + 20))
    engine.submit(recorder.job("long", LONG, 3, echo=True))
    engine.submit(recorder.job("late", b"xy", 2))
    engine.start()
    recorder.wait_for_end("writing", "long", "late")
    assert recorder.first("late", Ended) < recorder.first("long", Written)
    whos = [who for who, event in recorder.events if isinstance(event, (PromptRead, Written))]
    reads = [i for i, who in enumerate(whos) if who == "long"][:pieces]
    for this, following in pairwise(reads):  # a byte is written between two pieces
        assert "writing" in whos[this:following]
    assert text(recorder, "long") == bytes(generate(model, LONG, 3, Sampler(1.0)))
    assert b"".join(event.piece for event in recorder.of("long", PromptRead)) == LONG


@pytest.mark.parametrize("moment", ["waiting", "reading", "writing"])
def test_a_job_that_is_given_up_frees_its_rows_at_once(
    make: Callable, recorder: Recorder, moment: str
) -> None:
    engine = make(max_rows=4)
    given_up = recorder.job("given up", LONG * 20 if moment == "reading" else b"a", 10**6, rows=3, echo=True)
    if moment == "waiting":
        engine.submit(recorder.job("other", b"a", 10**6, rows=4))
    engine.submit(given_up)
    if moment == "waiting":
        assert engine.load() == (4, 1)
        engine.cancel(given_up)
        assert engine.load() == (4, 0)
        return
    engine.start()
    recorder.wait_for(lambda: recorder.of("given up", PromptRead if moment == "reading" else Written))
    engine.cancel(given_up)
    engine.submit(recorder.job("next", b"b", 5, rows=4))  # needs all of them
    recorder.wait_for(lambda: len(recorder.of("next", Ended)) == 4)
    assert not recorder.of("given up", Ended)
    count = len(recorder.events)
    engine.cancel(given_up)  # once more: nothing
    assert len(recorder.events) == count and engine.load() == (0, 0)


def test_jobs_wait_in_their_order_and_too_many_are_refused(make: Callable, recorder: Recorder) -> None:
    engine = make(max_rows=2, max_queue=2)
    for name, rows in (
        ("first", 1),
        ("second", 2),
        ("third", 1),
    ):  # the third would fit, and does not overtake
        engine.submit(recorder.job(name, b"a", 3, rows))
    assert engine.load() == (1, 2)
    with pytest.raises(ApiError) as refusal:
        engine.submit(recorder.job("fourth", b"a", 3))
    assert refusal.value.status == 429 and refusal.value.headers["Retry-After"]
    engine.start()
    recorder.wait_for_end("first", "third")
    assert recorder.first("second", Ended) < recorder.first("third", Written)
    assert engine.load() == (0, 0)


def test_a_fault_in_one_prompt_leaves_the_others_alone(
    make: Callable, recorder: Recorder, model: ByteLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = type(model).prefill

    def faulty(self: ByteLM, data: torch.Tensor, state: object = None) -> object:
        piece = bytes(data[0].tolist())
        if piece == b"fault":
            raise RuntimeError("made up")
        logits, after = prefill(self, data, state)
        return (logits * torch.nan if piece == b"nan" else logits), after

    monkeypatch.setattr(type(model), "prefill", faulty)
    engine = make()
    for prompt in (b"fault", b"ab", b"nan"):
        engine.submit(recorder.job(prompt.decode(), prompt, 30))
    engine.start()
    recorder.wait_for_end("fault", "ab", "nan")
    assert [str(event.fault) for event in recorder.of("fault", Failed)] == ["made up"]
    assert isinstance(recorder.of("nan", Failed)[0].fault, UserError)
    assert len(text(recorder, "ab")) == 30
    assert engine.load() == (0, 0)


def test_after_a_fault_of_the_batch_the_next_jobs_are_served(
    make: Callable, recorder: Recorder, model: ByteLM
) -> None:
    class Faulty(Batch):
        faults = 1

        def step(self) -> list:
            if Faulty.faults:
                Faulty.faults -= 1
                raise MemoryError
            return super().step()

    engine = make(lambda: Faulty(model))
    engine.submit(recorder.job("first", b"a", 5))
    engine.start()
    recorder.wait_for_end("first")
    engine.submit(recorder.job("second", b"a", 5))
    recorder.wait_for_end("second")
    assert isinstance(recorder.of("first", Failed)[0].fault, MemoryError)
    assert text(recorder, "second") == bytes(generate(model, b"a", 5, Sampler(1.0)))


def test_closing_ends_every_job_and_takes_no_more(make: Callable, recorder: Recorder) -> None:
    engine = make(max_rows=1)
    engine.submit(recorder.job("writing", b"a", 10**9))
    engine.submit(recorder.job("waiting", b"a", 10**9))
    engine.start()
    recorder.wait_for(lambda: recorder.of("writing", Written))
    engine.close()
    engine.join()
    for name in ("writing", "waiting"):
        assert recorder.of(name, Failed)[0].fault.status == 503
    with pytest.raises(ApiError, match="shutting down"):
        engine.submit(recorder.job("late", b"a", 1))
    assert not engine.is_alive()
