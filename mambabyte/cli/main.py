"""The command line: finds the command, turns its flags into settings and leaves the rest to Hydra."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from mambabyte import __version__, commands
from mambabyte.cli.faults import out_of_memory, sentence
from mambabyte.cli.flags import Parser, command_parser, hydra_arguments, settings_from_flags
from mambabyte.cli.streams import safe_streams
from mambabyte.cli.user import ensure_home_and_name
from mambabyte.commands import NAMES, Command
from mambabyte.config.overrides import quoted
from mambabyte.config.settings import suggestion
from mambabyte.errors import UserError
from mambabyte.runtime.secrets import redact
from mambabyte.runtime.signals import Stopped, raise_on_stop_signal
from mambabyte.runtime.terminal import visible

FAMILIES = {name.split(" ")[0] for name in NAMES if " " in name}  # commands of two words
Find = Callable[[str], Command]


def main(argv: Sequence[str] | None = None, find: Find = commands.find) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 1, a mistake of the user's or a fault; 75, stopped and resumable; 130, interrupted.
    """
    with safe_streams():
        try:
            try:
                ensure_home_and_name()
                return run(list(sys.argv[1:] if argv is None else argv), find)
            finally:
                sys.stdout.flush()
        except UserError as fault:
            _say(out_of_memory(fault) or fault)
            return fault.exit_code
        except Stopped as stop:
            _say(stop)
            return stop.exit_code
        except KeyboardInterrupt:
            _say("stopped")
            return 130
        except Exception as fault:
            _say_what_failed(fault)
            return 1


def _say(message: object) -> None:
    print(redact(f"mambabyte: {message}"), file=sys.stderr)


def _say_what_failed(fault: Exception) -> None:
    lost = getattr(sys.stdout, "fault", None)
    if isinstance(lost, BrokenPipeError):
        return  # the reader has gone (`| head`)
    if lost is not None:
        _say(f"standard output cannot be written ({lost.strerror}): free some space, or send it elsewhere")
    elif (said := sentence(fault)) is not None:
        _say(said)
    else:
        # Printed here, since a library's message may quote a secret, such as the address that it was given.
        print(visible(redact(traceback.format_exc())), end="", file=sys.stderr)


def run(argv: list[str], find: Find) -> int:
    if argv and argv[0] in ("-sc", "--shell-completion"):
        from mambabyte.cli.completion import complete

        return complete(argv)
    parser = Parser(
        prog="mambabyte",
        usage="mambabyte COMMAND [group=choice ...] [key=value ...] [options]",
        description="Byte-level language models: train, measure and use them.",
        epilog=_listed(NAMES, find)
        + "\n\n`mambabyte COMMAND --help` lists a command's settings and options."
        + '\nTab completion in bash: eval "$(mambabyte -sc install=bash)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mambabyte {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    name = parser.parse_args(argv[:1]).command
    if name is None:
        parser.print_help(sys.stderr)
        return 1
    words = argv[1:]
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder was removed: change to another one (cd)") from error
    if name in FAMILIES:
        name, words = with_second_word(name, words, find)
    if name not in NAMES:
        raise UserError(f"there is no command '{name}'" + suggestion(name, NAMES))
    command = find(name)
    if not hasattr(command.settings, "yaml"):
        options = command_parser(name, command).parse_intermixed_args(words)
        return int(command.run(settings_from_flags(command, options)) or 0)
    from mambabyte.cli.hydra_app import run_hydra

    overrides, flags = hydra_arguments(name, command, words)
    if "--help" in flags:
        from mambabyte.cli.help import describe_settings

        folder = next((flag.partition("=")[2] for flag in flags if flag.startswith("--config-dir=")), None)
        command_parser(name, command).print_help()
        print("\n" + describe_settings(command.settings, overrides, folder))
        return 0
    # Hydra records each sweep in a file. That of `train` belongs in its run_dir; the others leave none.
    scratch = Path(tempfile.gettempdir()) / f"mambabyte-sweep-{secrets.token_hex(8)}"  # made by a sweep alone
    resumable = name == "train" and "dry_run=true" not in overrides
    if not resumable:
        overrides.insert(0, f"hydra.sweep.dir={quoted(str(scratch))}")
    try:
        with raise_on_stop_signal() if resumable else nullcontext():
            run_hydra(name, command, overrides, flags)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def with_second_word(family: str, argv: list[str], find: Find) -> tuple[str, list[str]]:
    """The command of two words that begins with ``family``, and the words that follow it.

    Raises:
        UserError: there is no second word.
        SystemExit: after printing the family's help.
    """
    members = [name for name in NAMES if name.startswith(f"{family} ")]
    if argv and not argv[0].startswith("-"):
        return f"{family} {argv[0]}", argv[1:]
    parser = Parser(
        prog=f"mambabyte {family}",
        usage=f"mambabyte {family} WORD [group=choice ...] [key=value ...] [options]",
        epilog=_listed(members, find),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv[:1])
    raise UserError(f"mambabyte {family} needs another word: {' or '.join(members)}")


def _listed(names: Sequence[str], find: Find) -> str:
    return "commands:\n" + "\n".join(f"  {name:14}{find(name).help}" for name in names)
