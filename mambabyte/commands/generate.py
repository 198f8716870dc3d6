"""mambabyte generate: continues prompts, printing text as soon as its bytes are complete."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mambabyte.commands import CKPT, JSON, OUT, Command, Flag
from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.runtime.system_errors import cannot_write
from mambabyte.runtime.terminal import visible, write_bytes

if TYPE_CHECKING:
    from mambabyte.generation.outputs import Output
    from mambabyte.generation.prompts import Prompt
    from mambabyte.generation.speculative.drafting import Drafting
    from mambabyte.models import ByteLM

_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.?)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\"}


@dataclass(kw_only=True)
class GenerateSettings(CommandSettings):
    """conf/generate.yaml"""

    yaml: ClassVar[str] = "generate"
    not_kept: ClassVar[tuple[str, ...]] = ("prompt", "stop")
    repeated: ClassVar[tuple[str, ...]] = ("prompt", "prompt_file", "stop")
    ckpt: Path
    prompt: str | list[str] | None
    prompt_file: Path | list[Path] | None
    bytes: int = setting(at_least=0, at_most=10**12)
    samples: int = setting(at_least=1, at_most=10**6)
    batch_size: int = setting(at_least=1, at_most=2**16)
    temperature: float = setting(at_least=0)
    top_k: int | None = setting(at_least=1, at_most=256)
    top_p: float | None = setting(above=0, at_most=1)
    min_p: float | None = setting(at_least=0, at_most=1)
    repetition_penalty: float = setting(at_least=1, at_most=100)
    valid_utf8: bool
    stop: str | list[str]
    seed: int = setting(at_least=0, below=2**32)
    state: Path | None
    save_state: Path | None
    draft: str | None
    draft_length: int | None = setting(at_least=1, at_most=256)
    acceptance: Literal["exact", "top_beta"]
    top_beta: int | None = setting(at_least=1, at_most=256)
    weights: Literal["fp32", "bf16", "int8"]
    raw: bool
    json: bool
    out: Path | None
    interactive: bool
    device: str

    def __post_init__(self) -> None:
        if self.bytes == 0 and (self.save_state is None or self.interactive):
            raise UserError(
                "bytes=0 writes nothing: add save_state=FILE to keep what was read, or set bytes=1 or more"
            )
        if self.bytes == 0 and (self.raw or self.out is not None):
            raise UserError("bytes=0 writes nothing: leave raw= and out= out")
        if self.json and (self.raw or self.out is not None):
            raise UserError("json=true prints one JSON object: leave raw= and out= out")
        if self.interactive and (self.raw or self.json or self.out is not None or self.samples > 1):
            raise UserError("interactive=true shows one text: leave raw=, json=, out= and samples= out")
        if self.draft is None and (self.draft_length is not None or self.acceptance != "exact"):
            raise UserError("draft_length= and acceptance= need a drafter: add draft=ngram or draft=CKPT")
        if self.top_beta is not None and self.acceptance != "top_beta":
            raise UserError("top_beta= has no effect with acceptance=exact: add acceptance=top_beta")


def run(settings: GenerateSettings) -> None:
    """Write the continuations to stdout or to a file, and say on stderr how long that took.

    Raises:
        UserError: a setting is out of range or does not fit the others; a checkpoint, prompt or state cannot
            be read; a file exists already or cannot be written.
        KeyboardInterrupt: after what was written until then is complete.
    """
    from mambabyte import checkpoints
    from mambabyte.generation import Sampler, check_weights, load_context, save_context
    from mambabyte.generation.continuations import Spent
    from mambabyte.generation.interactive import Conversation, converse
    from mambabyte.generation.speculative import TOP_BETA, drafting_from
    from mambabyte.generation.stopping import Stops
    from mambabyte.generation.writing import Writing
    from mambabyte.runtime.devices import choose_device

    prompts, stop = _prompts(settings), _stop_strings(settings)
    _refuse_what_would_fail(settings, prompts)
    Stops(stop)  # refuses an empty one
    sampler = Sampler(
        *(settings.temperature, settings.top_k, settings.top_p, settings.seed, settings.min_p),
        *(settings.repetition_penalty, settings.valid_utf8),
    )
    model = checkpoints.load_model(settings.ckpt).to(choose_device(settings.device))
    check_weights(model, settings.weights)
    drafting = None
    if settings.draft is not None:
        drafting = drafting_from(
            *(settings.draft, model, settings.draft_length, settings.acceptance),
            TOP_BETA if settings.top_beta is None else settings.top_beta,
        )
    context = None if settings.state is None else load_context(settings.state, model)
    _refuse_too_long(settings, model, prompts, 0 if context is None else context.length)
    spent, stopped = Spent(), False
    writing = Writing(
        *(model, sampler, settings.bytes, stop, settings.samples, settings.batch_size, settings.weights),
        keep_context=settings.save_state is not None,
        drafting=drafting,
    )
    if settings.interactive:
        for prompt in prompts:
            context, _ = spent.read(model, prompt, context)
        conversation = Conversation(writing, context, spent)
        converse(conversation)
        context = conversation.context
    else:
        with _output(settings, len(prompts) * settings.samples > 1, drafting) as output:
            work = writing.texts if settings.bytes else writing.nothing
            context, stopped = work(prompts, context, output, spent)
    if settings.save_state is not None and context is not None:
        save_context(settings.save_state, model, context)
    drafts = "" if drafting is None else f"; {drafting.statistics}"
    print(f"mambabyte: {spent}{drafts}", file=sys.stderr)
    if stopped:
        raise KeyboardInterrupt


def _prompts(settings: GenerateSettings) -> list[Prompt]:
    """The prompts that were asked for; standard input if it is redirected and there are none; else an empty
    one, or none at all for an interactive text, which begins with what is typed."""
    from mambabyte.generation.prompts import STANDARD_INPUT, Prompt, input_is_redirected

    typed, files = _listed(settings.prompt), _listed(settings.prompt_file)
    prompts = [Prompt(text.encode("utf-8", "surrogateescape")) for text in typed]
    prompts += [Prompt(file=file) for file in files]
    if not prompts and not settings.interactive:
        if input_is_redirected():
            print("mambabyte: reading the prompt from standard input", file=sys.stderr)
            return [Prompt(file=STANDARD_INPUT)]
        return [Prompt()]
    return prompts


def _stop_strings(settings: GenerateSettings) -> list[bytes]:
    """The stop strings, with the bytes that their escapes stand for.

    Raises:
        UserError: another escape.
    """

    def byte(found: re.Match[bytes]) -> bytes:
        escape = found[1]
        if escape[:1] == b"x" and len(escape) == 3:
            return bytes.fromhex(escape[1:].decode())
        if escape not in _ESCAPED:
            raise UserError(
                f"stop has the escape {visible(found[0].decode('utf-8', 'replace'))}, which means nothing: "
                "write \\n, \\r, \\t, \\xFF (a byte in hexadecimal) or, for a backslash, \\\\"
            )
        return _ESCAPED[escape]

    return [_ESCAPE.sub(byte, text.encode("utf-8", "surrogateescape")) for text in _listed(settings.stop)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _refuse_what_would_fail(settings: GenerateSettings, prompts: list[Prompt]) -> None:
    """Refuse before any long work what could only fail after it."""
    from mambabyte.generation.prompts import STANDARD_INPUT

    texts = len(prompts) * settings.samples
    from_input = [prompt for prompt in prompts if prompt.file == STANDARD_INPUT]
    if settings.interactive and from_input:
        raise UserError(
            "interactive=true reads what is typed from standard input: name a file as prompt_file="
        )
    if settings.interactive and len(prompts) > 1:
        raise UserError("interactive=true shows one text: give one prompt")
    if len(from_input) > 1:
        raise UserError("standard input can be read once: give - as one prompt_file only")
    if texts > 1 and settings.save_state is not None:
        raise UserError(f"save_state keeps the state after one text, not {texts}: give one prompt, samples=1")
    if texts > 1 and (settings.raw or settings.out is not None):
        raise UserError(
            f"raw bytes of {texts} texts could not be told apart: give one prompt and samples=1, or json=true"
        )
    for prompt in prompts:
        prompt.check()
    if settings.state is not None and not settings.state.is_file():
        raise UserError(f"there is no file '{settings.state}' with a saved state")
    for key, file in (("out=", settings.out), ("save_state=", settings.save_state)):
        if file is not None:
            _refuse_to_write(file, key)


def _refuse_too_long(settings: GenerateSettings, model: ByteLM, prompts: list[Prompt], read: int) -> None:
    """Raise UserError if a text, with `read` bytes before it, needs more positions than the model has."""
    known = model.config.positions
    if known is None:
        return
    for prompt in prompts:
        if prompt.length is None:
            continue
        before = read + prompt.length or 1  # without any the model reads a line feed
        if before > known:
            raise UserError(
                f"this model has positions for {known:,} bytes, and what is to be continued has {before:,}: "
                "give it less"
            )
        # the last byte of a text is not read, unless its state is kept
        room = known - before + (settings.save_state is None)
        if settings.bytes > room and not settings.interactive:
            raise UserError(
                f"this model has positions for {known:,} bytes, of which the prompt takes {before:,}: set "
                f"bytes={room} or less"
            )


def _refuse_to_write(file: Path, key: str) -> None:
    """Raises UserError if a new file cannot be written there."""
    if file.exists() or file.is_symlink():
        raise UserError(f"'{file}' already exists; remove it or choose another {key}")
    if not os.access(file.parent, os.W_OK):
        number = errno.EACCES if file.parent.is_dir() else errno.ENOENT
        raise cannot_write(file, OSError(number, os.strerror(number)), key)


@contextmanager
def _output(settings: GenerateSettings, several: bool, drafting: Drafting | None) -> Iterator[Output]:
    """Where the texts go."""
    from mambabyte.generation.outputs import JsonObject, RawBytes, ShownText

    if settings.json:
        state = None if settings.state is None else str(settings.state)
        about = {"checkpoint": str(settings.ckpt), "state": state, "seed": settings.seed}
        yield JsonObject(about, None if drafting is None else drafting.statistics)
    elif settings.out is not None:
        try:
            with settings.out.open("xb", buffering=0) as file:  # complete whenever the program ends
                yield RawBytes(file.write)
        except OSError as error:
            raise cannot_write(settings.out, error, "out=") from error
    elif settings.raw:
        yield RawBytes(write_bytes)
    else:
        yield ShownText(headings=several)


COMMAND = Command(
    "continue a prompt: mambabyte generate --ckpt runs/quickstart --prompt 'def '",
    GenerateSettings,
    run,
    flags=(
        CKPT,
        Flag("--prompt", "the text to continue; several are continued together", "prompt", metavar="TEXT"),
        Flag(
            *("--prompt-file", "a file to continue, of any bytes and length; - is standard input"),
            key="prompt_file",
            metavar="PATH",
        ),
        Flag("--stop", "a string before which the text ends", "stop", metavar="TEXT"),
        Flag("--interactive", "type text, watch it go on, type more", "interactive", short="-i"),
        Flag("--raw", "write the bytes as they are, for a file or another program", "raw"),
        JSON,
        OUT,
    ),
)
