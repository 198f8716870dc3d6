"""`mambabyte.generate` and so on, for scripts and notebooks: the commands' work on a model in memory."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from mambabyte import checkpoints
from mambabyte.config.settings import Settings, setting
from mambabyte.data import ByteCorpus
from mambabyte.errors import UserError
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.evaluation.protocols import ProtocolName
from mambabyte.generation import Context, Sampler
from mambabyte.generation import generate as generate_bytes
from mambabyte.generation.speculative import drafting_from
from mambabyte.generation.stopping import Stops
from mambabyte.models import ByteLM
from mambabyte.runtime.precision import PrecisionName


def generate(
    model: ByteLM,
    prompt: bytes = b"",
    bytes: int = 512,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    weights: str = "fp32",
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    valid_utf8: bool = False,
    stop: Sequence[bytes] = (),
    context: Context | None = None,
    draft: str | Path | ByteLM | None = None,
) -> bytes:
    """Continue a prompt, as ``mambabyte generate`` does with the same settings.

    Args:
        bytes: how many to generate, at most.
        temperature: 0 takes the likeliest byte each time.
        top_k: draw from this many of the likeliest bytes only.
        top_p: draw from the likeliest bytes that together have this probability.
        seed: of the draws, which differ between a CPU and a GPU.
        weights: ``fp32``, ``bf16`` or, on a CPU only, ``int8``; rounded ones are for a MambaByte model.
        min_p: draw from bytes at least this times as likely as the likeliest.
        repetition_penalty: divides the positive logits of the last 64 bytes, and multiplies negative ones.
        valid_utf8: rule out bytes that would make the text invalid UTF-8.
        stop: strings before which the text ends.
        context: what the model has read before the prompt, from ``mambabyte.read``.
        draft: ``"ngram"``, ``"heads"``, a smaller model, or where one is: it guesses bytes, of which several
            are verified at a time. The text is the same, and is there sooner. A model is put into eval mode.

    Returns:
        The bytes that follow the prompt, without it.

    Raises:
        UserError: an argument of another type or out of range, such as a prompt of text; or weights that do
            not serve this model.
    """
    _check_model(model)
    _check_bytes("prompt", prompt)
    if not isinstance(stop, Sequence):
        raise UserError(f"stop must be a list of stop strings, not {type(stop).__name__}")
    for string in stop:
        _check_bytes("a stop string", string)
    if not isinstance(context, (Context, NoneType)):
        raise UserError(f"context must be what mambabyte.read returns, not {type(context).__name__}")
    length = _Length(bytes).bytes
    sampler = Sampler(temperature, top_k, top_p, seed, min_p, repetition_penalty, valid_utf8)
    stops = Stops(stop)
    if not isinstance(draft, (str, Path, ByteLM, NoneType)):
        raise UserError(
            f"draft must be 'ngram', 'heads', a ByteLM or where one is, not {type(draft).__name__}"
        )
    drafting = None if draft is None else drafting_from(draft, model)
    text = bytearray()
    for byte in generate_bytes(model, builtins.bytes(prompt), length, sampler, weights, context, drafting):
        text += stops.push(byte)
        if stops.found:
            break
    return builtins.bytes(text + stops.rest())


def bits_per_byte(
    model: ByteLM,
    data: bytes,
    protocol: ProtocolName = "disjoint",
    context_length: int = 1024,
    stride: int | None = None,
    batch_size: int = 8,
    precision: PrecisionName = "fp32",
) -> float:
    """The bits per byte of one document, as ``mambabyte eval`` measures them.

    Args:
        protocol: ``disjoint``, ``sliding`` or ``stateful``, as docs/evaluation.md describes them.
        context_length: the bytes of a window; that of training is the usual choice.
        stride: of ``sliding``; half the context by default.
        batch_size: windows at a time; the figure does not depend on it.
        precision: ``fp32`` or ``bf16``.

    Raises:
        UserError: no bytes, an argument of another type or out of range, or a model that cannot do the
            protocol.
    """
    _check_model(model)
    _check_bytes("data", data)
    data = bytes(data)
    if not data:
        raise UserError("there are no bytes to measure: data is empty")
    corpus = ByteCorpus(np.frombuffer(data, np.uint8), np.array([0, len(data)]), ["data"])
    how = Protocol(protocol, context_length, stride, batch_size, precision)
    return evaluate(model, corpus, how, model.device).bits_per_byte


def save(model: ByteLM, path: str | Path) -> None:
    """Write a model as a folder of safetensors and JSON, which ``mambabyte.load`` and ``ckpt=`` take.

    Unlike ``mambabyte export``, it does not say how the model was trained.

    Raises:
        UserError: the folder exists already, or cannot be written; the model is none of ours.
    """
    _check_model(model)
    if not isinstance(path, (str, Path)):
        raise UserError(f"path must be text or a Path, not {type(path).__name__}")
    checkpoints.write_export(model, None, 0, path)


@dataclass
class _Length(Settings):
    bytes: int = setting(at_least=1, at_most=10**12)


def _check_model(model: Any) -> None:
    if hasattr(model, "merge_and_unload"):
        raise UserError("model is wrapped by peft: give model.merge_and_unload(), which is a ByteLM again")
    if not isinstance(model, ByteLM):
        raise UserError(f"model must be a ByteLM, as mambabyte.load returns one, not {type(model).__name__}")


def _check_bytes(name: str, data: Any) -> None:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise UserError(f"{name} must be bytes, as text.encode() gives them, not {type(data).__name__}")
