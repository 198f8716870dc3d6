"""Tab completion in bash: we complete commands, and Hydra, which knows no commands, what follows them."""

from __future__ import annotations

import os

from mambabyte import commands
from mambabyte.cli.hydra_app import run_hydra
from mambabyte.commands import NAMES


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
    run_hydra(name or "train", commands.find(name or "train"), argv[1:], ["--shell-completion"])
    return 0
