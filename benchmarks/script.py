"""What the scripts share: numbers as options, and faults as sentences."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from mambabyte.cli.faults import sentence
from mambabyte.errors import UserError


def seed_number(word: str) -> int:
    """A seed, of an option."""
    if int(word) < 0:
        raise argparse.ArgumentTypeError(f"{word} is no seed: they begin at 0")
    return int(word)


def positive(word: str) -> float:
    """A number above 0, of an option."""
    number = float(word)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is no number above 0")
    return number


def positive_int(word: str) -> int:
    """A whole number above 0, of an option."""
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is no whole number above 0")
    return int(word)


def run_script(name: str, main: Callable[[], None]) -> None:
    """Run a script; a mistake of the user's, or of the system, is a sentence and exit code 1."""
    try:
        main()
    except (UserError, OSError) as fault:
        raise SystemExit(f"{name}: {sentence(fault) or fault}") from None
