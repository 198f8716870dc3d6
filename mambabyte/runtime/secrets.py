"""Secrets in text: what counts as one, how it is hidden in what is printed, and refused in what is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mambabyte.errors import UserError

HIDDEN = "***"
# Shorter values, such as a local database's password, could be an ordinary word of a path.
_SHORTEST = 16
_SECRET_NAME = re.compile(r"(TOKEN|API_?KEY|SECRET|SECRET_(ACCESS_)?KEY|PASSWORD|PASSWD)$", re.IGNORECASE)
_SECRET = re.compile(
    r"(?<=://)[^/\s:]*:[^/\s]+(?=@)"  # scheme://user:password@host
    r"|(?<=http://)[^/\s]+(?=@)|(?<=https://)[^/\s]+(?=@)"  # https://token@host
    r"|(?<=[?&])(?:[\w.-]*(?:token|key|secret|signature|password)=)[^&\s'\"]+"  # ?token=, a signed address
    r"|\b(?:hf_[A-Za-z0-9]{30,}|wandb_v\d_\w{30,}|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """``text`` with *** for each password or signature in an address, each token of the Hugging Face hub,
    Weights & Biases or GitHub, and each value of an environment variable named like a secret (…_API_KEY)."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    return _SECRET.sub(HIDDEN, text)


def refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Raise UserError if a text anywhere in ``settings`` holds a secret: a run keeps its settings in its
    directory and its checkpoints, and shows them to its logger."""
    for key, text in _texts(settings, ""):
        if redacted(text) != text:
            raise UserError(
                f"{redacted(key)} holds a password or a token, which the run's files would keep: take it "
                "out, and give it by the environment (HF_TOKEN, WANDB_API_KEY) or by a netrc file"
            )


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield where, str(key)
            yield from _texts(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, where)
