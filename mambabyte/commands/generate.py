"""mambabyte generate: continues a prompt, printing text as soon as its bytes are complete."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

from mambabyte.commands import CKPT, Command, Flag
from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import setting
from mambabyte.errors import UserError


@dataclass(kw_only=True)
class GenerateSettings(CommandSettings):
    """conf/generate.yaml"""

    yaml: ClassVar[str] = "generate"
    not_kept: ClassVar[tuple[str, ...]] = ("prompt",)
    ckpt: Path
    prompt: str
    bytes: int = setting(at_least=1, at_most=10**12)
    temperature: float = setting(at_least=0)
    top_k: int | None = setting(at_least=1, at_most=256)
    top_p: float | None = setting(above=0, at_most=1)
    seed: int = setting(at_least=0, below=2**32)
    draft: str | None
    draft_length: int | None = setting(at_least=1, at_most=256)
    acceptance: Literal["exact", "top_beta"]
    top_beta: int = setting(at_least=1, at_most=256)
    weights: Literal["fp32", "bf16", "int8"]
    raw: bool
    device: str

    def __post_init__(self) -> None:
        if self.draft is None and (self.draft_length is not None or self.acceptance != "exact"):
            raise UserError("draft_length= and acceptance= are of drafts: add draft=ngram or draft=CKPT")


def run(settings: GenerateSettings) -> None:
    """Write the prompt and its continuation to stdout: text with symbols for what is none, or raw bytes.

    Raises:
        UserError: a setting is out of range, or the checkpoint cannot be read.
    """
    from mambabyte import checkpoints
    from mambabyte.generation import Sampler, decode_stream, generate
    from mambabyte.generation.speculative import drafting_from
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.terminal import visible, write_bytes

    sampler = Sampler(settings.temperature, settings.top_k, settings.top_p, settings.seed)
    model = checkpoints.load_model(settings.ckpt).to(choose_device(settings.device))
    drafting = None
    if settings.draft is not None:
        drafting = drafting_from(
            settings.draft, model, settings.draft_length, settings.acceptance, settings.top_beta
        )
    prompt = settings.prompt.encode("utf-8", "surrogateescape")
    written = generate(model, prompt, settings.bytes, sampler, settings.weights, None, drafting)
    if settings.raw:
        for byte in chain(prompt, written):
            write_bytes(bytes([byte]))
    else:
        for text in decode_stream(chain(prompt, written)):
            print(visible(text), end="", flush=True)
        print()
    if drafting is not None:
        print(f"mambabyte: {drafting.statistics}", file=sys.stderr)


COMMAND = Command(
    "continue a prompt: mambabyte generate --ckpt runs/quickstart --prompt 'def '",
    GenerateSettings,
    run,
    flags=(
        CKPT,
        Flag("--prompt", "the text to continue", "prompt", metavar="TEXT"),
        Flag("--raw", "write the bytes as they are, for a file or another program", "raw"),
    ),
)
