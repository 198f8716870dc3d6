"""mambabyte generate: continues a prompt, printing text as soon as its bytes are complete."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

from mambabyte.commands import CKPT, Command, Flag
from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import setting


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
    weights: Literal["fp32", "bf16", "int8"]
    raw: bool
    device: str


def run(settings: GenerateSettings) -> None:
    """Write the prompt and its continuation to stdout: text with symbols for what is none, or raw bytes.

    Raises:
        UserError: a setting is out of range, or the checkpoint cannot be read.
    """
    from mambabyte import checkpoints
    from mambabyte.generation import Sampler, decode_stream, generate
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.terminal import visible, write_bytes

    sampler = Sampler(settings.temperature, settings.top_k, settings.top_p, settings.seed)
    model = checkpoints.load_model(settings.ckpt).to(choose_device(settings.device))
    prompt = settings.prompt.encode("utf-8", "surrogateescape")
    stream = chain(prompt, generate(model, prompt, settings.bytes, sampler, settings.weights))
    if settings.raw:
        for byte in stream:
            write_bytes(bytes([byte]))
        return
    for text in decode_stream(stream):
        print(visible(text), end="", flush=True)
    print()


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
