"""mambabyte serve: a page to watch a model write, and OpenAI's completions API."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from mambabyte.commands import CKPT, Command, Flag
from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import setting
from mambabyte.errors import UserError

API_KEY = "MAMBABYTE_API_KEY"


@dataclass(kw_only=True)
class ServeSettings(CommandSettings):
    """conf/serve.yaml"""

    yaml: ClassVar[str] = "serve"
    ckpt: Path
    name: str | None
    host: str
    port: int = setting(at_least=0, at_most=65535)
    allowed_hosts: list[str]
    max_prompt_bytes: int = setting(at_least=1, at_most=10**12)
    max_completion_bytes: int = setting(at_least=1, at_most=10**12)
    max_rows: int = setting(at_least=1, at_most=100_000)
    max_queue: int = setting(at_least=0, at_most=10**6)
    max_body_bytes: int = setting(at_least=1, at_most=10**12)
    weights: Literal["fp32", "bf16", "int8"]
    device: str


def run(settings: ServeSettings) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        UserError: a package is missing, the checkpoint cannot be read, or the address cannot be had.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError("serve needs starlette and uvicorn: pip install 'mambabyte[serve]'") from error
    from mambabyte import checkpoints
    from mambabyte.generation import Batch, Sampler, generate
    from mambabyte.runtime.devices import choose_device
    from mambabyte.serving import Limits
    from mambabyte.serving.app import build_app
    from mambabyte.serving.engine import Engine
    from mambabyte.serving.server import Server, is_loopback, listen, url

    key = os.environ.get(API_KEY, "").strip() or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UserError(f"{API_KEY} holds characters that no header can carry: use letters and digits")
    listener = listen(settings.host, settings.port)  # before a large model is loaded
    with listener:
        model = checkpoints.load_model(settings.ckpt).to(choose_device(settings.device)).eval()
        limits = Limits(
            settings.max_prompt_bytes,
            settings.max_completion_bytes,
            settings.max_rows,
            settings.max_queue,
            settings.max_body_bytes,
            model.config.max_bytes,
        )
        # Kernels are compiled before the first request, and a model without probabilities is refused.
        list(generate(model, b"", 2, Sampler(temperature=0), settings.weights))
        name = settings.name or settings.ckpt.resolve().name or "mambabyte"
        engine = Engine(model, lambda: Batch(model, settings.weights), limits)
        hosts = [settings.host, *settings.allowed_hosts]
        app = build_app(engine, limits, name, model.num_parameters(), hosts, key)
        log_to_stderr()
        if not is_loopback(listener):
            who = "with its API key" if key else f"(set {API_KEY} to ask for a key)"
            print(f"mambabyte: other machines can use this server {who}, unencrypted", file=sys.stderr)
        print(f"{name} is served at {url(listener)} (Ctrl-C ends it)", flush=True)
        Server(app, engine).serve_on(listener)


def log_to_stderr() -> None:
    """Show a line for each request."""
    log = logging.getLogger("mambabyte")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


COMMAND = Command(
    "serve a model to a browser and to OpenAI's clients: mambabyte serve --ckpt runs/quickstart",
    ServeSettings,
    run,
    flags=(CKPT, Flag("--port", "where to listen", "port", metavar="N")),
)
