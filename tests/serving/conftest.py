"""A server around a tiny model, in a thread of the tests' process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import openai
import pytest
import torch

from mambabyte.generation import Batch
from mambabyte.models import ByteLM, MambaByteConfig
from mambabyte.serving import Limits
from mambabyte.serving.app import build_app
from mambabyte.serving.engine import Engine
from mambabyte.serving.server import Server, listen, url

NAME = "tiny"


class GatedBatch(Batch):
    """Takes no step while the gate is closed."""

    gate: threading.Event

    def step(self) -> list:
        assert self.gate.wait(60)
        return super().step()


@dataclass
class Served:
    """A running server. Without the gate, it writes as fast as it can."""

    url: str
    engine: Engine
    gate: threading.Event
    client: openai.OpenAI
    http: httpx2.Client

    def write(self, prompt: object = "ab", **fields: object) -> openai.types.Completion:
        return self.client.completions.create(model=NAME, prompt=prompt, **fields)

    def text(self, prompt: object = "ab", **fields: object) -> str:
        return self.write(prompt, **fields).choices[0].text

    def wait_for_load(self, rows: int, waiting: int = 0) -> None:
        """Until so many rows are taken and so many requests wait."""
        deadline = time.monotonic() + 30
        while self.engine.load() != (rows, waiting):
            assert time.monotonic() < deadline, self.engine.load()
            time.sleep(0.005)


@pytest.fixture(scope="session")
def model() -> ByteLM:
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=16, n_layer=2).build().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far enough apart for rounding to decide nothing
    return model


@contextmanager
def running(model: ByteLM, key: str | None = None, **limits: int | None) -> Iterator[Served]:
    gate = threading.Event()
    gate.set()

    def new_batch() -> GatedBatch:
        batch = GatedBatch(model)
        batch.gate = gate
        return batch

    bounds = Limits(**limits)
    engine = Engine(model, new_batch, bounds)
    app = build_app(engine, bounds, NAME, model.num_parameters(), ["our.name"], key)
    listener = listen("127.0.0.1", 0)
    server = Server(app, engine)
    thread = threading.Thread(target=server.serve_on, args=(listener,))
    thread.start()
    address = url(listener)
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=key or "none", max_retries=0, timeout=60)
    with client, httpx2.Client(base_url=address, timeout=60) as http:
        try:
            yield Served(address, engine, gate, client, http)
        finally:
            gate.set()
            server.stop()
    thread.join(30)
    listener.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(model: ByteLM) -> Iterator[Served]:
    with running(model) as server:
        yield server


@pytest.fixture
def serving(model: ByteLM) -> Callable:
    """serving(max_rows=1, ...) is a context: a server with these limits, and perhaps another model."""
    return lambda key=None, model=model, **limits: running(model, key, **limits)
