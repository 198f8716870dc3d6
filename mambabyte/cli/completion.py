"""Tab completion in bash: we complete commands, and Hydra, which knows no commands, what follows them."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout

from mambabyte import commands
from mambabyte.cli.hydra_app import run_hydra
from mambabyte.commands import NAMES
from mambabyte.config import composition


def complete(argv: list[str]) -> int:
    """Answer bash, or print the script that installs the completion."""
    typed = os.environ.get("COMP_LINE", "").split(" ")
    words = [word for word in typed[1:-1] if word]  # whole ones: the last is being typed
    composed = [name for name in NAMES if hasattr(commands.find(name).settings, "yaml")]
    name = next((name for name in composed if words[: name.count(" ") + 1] == name.split(" ")), None)
    if any("query" in word for word in argv) and name is None:
        members = [name.split(" ")[1] for name in NAMES if words and name.startswith(f"{words[0]} ")]
        print(" ".join(members or dict.fromkeys(name.split(" ")[0] for name in NAMES)))
        return 0
    if name is not None:
        for word in name.split(" "):
            typed.remove(word)
        os.environ["COMP_LINE"] = " ".join(typed)
    answer = io.StringIO()
    with redirect_stdout(answer):
        run_hydra(name or "train", commands.find(name or "train"), argv[1:], ["--shell-completion"])
    if name is None or "=" in typed[-1]:
        print(answer.getvalue(), end="")
    else:
        print(" ".join(map(_ended, answer.getvalue().split())))
    return 0


def _ended(word: str) -> str:
    """``data=`` for the ``data`` that Hydra offers, since conf/data holds a folder beside its choices."""
    return f"{word}=" if any((composition.config_dir() / word).glob("*.yaml")) else word
