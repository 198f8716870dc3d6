"""The command line: splits off the command, turns its flags into overrides and leaves the rest to Hydra.

Nothing here imports torch: a command's own module is imported when its configuration has been composed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from mambabyte import __version__
from mambabyte.commands.eval_metrics import EVAL_METRICS
from mambabyte.errors import Interrupted, UserError
from mambabyte.runtime.secrets import redact, refuse_secrets
from mambabyte.runtime.signals import Stopped, raise_on_stop_signal

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {
    "train": "train a model: mambabyte train experiment=quickstart",
    "eval": "measure a model: mambabyte eval --bpb --ckpt runs/quickstart",
    "generate": "continue a prompt: mambabyte generate --ckpt runs/quickstart --prompt 'def '",
    "compress": "compress a file losslessly by a model: mambabyte compress FILE --ckpt runs/quickstart",
    "decompress": "get the file back: mambabyte decompress FILE.mbc --ckpt runs/quickstart",
    "export": "write a model as safetensors: mambabyte export --ckpt runs/quickstart out=quickstart",
    "data prepare": "write a corpus as training reads it: mambabyte data prepare data=pg19",
    "data inspect": "say what a corpus is made of: mambabyte data inspect data=stdlib",
    "report": "compare runs in tables and figures: mambabyte report runs/compute_matched --output report",
    "doctor": "say what is there to train with, and what to do about what is not",
}
TASKS = {
    "train": "mambabyte.commands.train",
    "eval": "mambabyte.commands.eval",
    "generate": "mambabyte.commands.generate",
    "compress": "mambabyte.commands.compress",
    "decompress": "mambabyte.commands.compress",
    "export": "mambabyte.commands.export",
    "data prepare": "mambabyte.commands.data_prepare",
    "data inspect": "mambabyte.commands.data_inspect",
}
FAMILIES = {name.split(" ")[0] for name in COMMANDS if " " in name}  # commands of two words
SUBMITIT = "hydra_plugins.hydra_submitit_launcher."
HYDRA_FLAGS = ("help", "cfg", "resolve", "package", "multirun", "config_dir", "info", "shell_completion")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0; 1, the user's to mend; 75, stopped and resumable; 130."""
    try:
        try:
            return run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except UserError as fault:
        print(redact(f"mambabyte: {fault}"), file=sys.stderr)
        return fault.exit_code
    except Stopped as stop:
        print(f"mambabyte: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("mambabyte: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); what is still buffered must not raise again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        # Printed here, since a library's message may quote a secret: the address that it was given, say.
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return 1


def run(argv: list[str]) -> int:
    if argv and argv[0] in ("-sc", "--shell-completion"):
        return complete(argv)
    parser = Parser(
        prog="mambabyte",
        usage="mambabyte COMMAND [group=choice ...] [key=value ...] [options]",
        description="Byte-level language models: train, measure and use them.",
        epilog="commands:\n"
        + "\n".join(f"  {name:14}{text}" for name, text in COMMANDS.items())
        + "\n\n`mambabyte COMMAND --help` lists a command's settings and options."
        + '\nTab completion in bash: eval "$(mambabyte -sc install=bash)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mambabyte {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    command = parser.parse_args(argv[:1]).command
    if command is None:
        parser.print_help(sys.stderr)
        return 1
    arguments = argv[1:]
    if command in FAMILIES:
        command, arguments = with_second_word(command, arguments)
    if command not in COMMANDS:
        from mambabyte.config.composition import suggestion

        raise UserError(f"there is no command '{command}'" + suggestion(command, COMMANDS))
    if command == "doctor":
        return doctor(arguments)
    if command == "report":
        return report(arguments)
    overrides, flags = hydra_arguments(command, arguments)
    with raise_on_stop_signal() if command == "train" else nullcontext(), TemporaryDirectory() as scratch:
        # Hydra notes each sweep in a file. That of `train` belongs to its run_dir; the others leave nothing.
        if command != "train" or "dry_run=true" in overrides:
            overrides.insert(0, f"hydra.sweep.dir={quoted(scratch)}")
        run_hydra(command, overrides, flags)
    return 0


def with_second_word(family: str, argv: list[str]) -> tuple[str, list[str]]:
    """The command of two words that begins with ``family``, and what follows it.

    Raises:
        UserError: there is no second word.
        SystemExit: after printing the family's help.
    """
    members = {name: text for name, text in COMMANDS.items() if name.startswith(f"{family} ")}
    if argv and not argv[0].startswith("-"):
        return f"{family} {argv[0]}", argv[1:]
    parser = Parser(
        prog=f"mambabyte {family}",
        usage=f"mambabyte {family} WORD [group=choice ...] [key=value ...] [options]",
        epilog="commands:\n" + "\n".join(f"  {name:14}{text}" for name, text in members.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv[:1])
    raise UserError(f"mambabyte {family} needs another word: {' or '.join(members)}")


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are ours: one sentence, exit code 1."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def doctor(argv: list[str]) -> int:
    parser = Parser(prog="mambabyte doctor", description=COMMANDS["doctor"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--offline", action="store_true", help="ask no service whether it can be reached")
    options = parser.parse_args(argv)
    return import_module("mambabyte.commands.doctor").run(options.json, options.offline)


def report(argv: list[str]) -> int:
    parser = Parser(prog="mambabyte report", description=COMMANDS["report"])
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory, a folder of runs such as a sweep's, or a glob",
    )
    form = parser.add_mutually_exclusive_group()
    for name in ("markdown", "csv", "json"):
        form.add_argument(
            f"--{name}", dest="form", action="store_const", const=name, default="text", help=f"print {name}"
        )
    parser.add_argument("--literature", action="store_true", help="and what the MambaByte paper publishes")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="write an HTML page, Markdown, CSV, JSON and PNGs there"
    )
    options = parser.parse_intermixed_args(argv)
    command = import_module("mambabyte.commands.report")
    return command.run(options.runs, options.form, options.literature, options.output)


def hydra_arguments(command: str, argv: list[str]) -> tuple[list[str], list[str]]:
    """The overrides and the flags that Hydra is to see, whatever order they were typed in."""
    parser = command_parser(command)
    options = parser.parse_intermixed_args(argv)
    if options.help:
        parser.print_help()
        print()
    overrides = [as_meant(override) for override in options.overrides]
    if command in ("compress", "decompress"):
        overrides = [f"file={quoted(each)}" if "=" not in each else each for each in overrides]
    for key in ("ckpt", "prompt", "output"):
        if getattr(options, key, None) is not None:
            overrides.append(f"{key}={quoted(getattr(options, key))}")
    if getattr(options, "show", None) is not None:
        overrides.append(f"show={options.show}")
    overrides += [f"{key}=true" for key in ("json", "prove", "dry_run") if getattr(options, key, False)]
    metrics = [metric for metric in EVAL_METRICS if getattr(options, metric, False)]
    if metrics:
        overrides.append(f"metrics=[{','.join(metrics)}]")
    flags = []
    for name in HYDRA_FLAGS:
        value = getattr(options, name)
        if value:
            flag = f"--{name.replace('_', '-')}"
            flags.append(flag if value is True else f"{flag}={value}")
    return overrides, flags


def command_parser(command: str) -> Parser:
    parser = Parser(
        prog=f"mambabyte {command}",
        usage=f"mambabyte {command} [group=choice ...] [key=value ...] [options]",
        description=COMMANDS[command],
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    if command in ("eval", "generate", "compress", "decompress", "export"):
        parser.add_argument("--ckpt", metavar="PATH", help="a run, a checkpoint or an export (ckpt=PATH)")
    if command == "eval":
        for metric, what in EVAL_METRICS.items():
            flag = f"--{metric.replace('_', '-')}"
            parser.add_argument(flag, action="store_true", help=f"{what} (metrics=[{metric}])")
        parser.add_argument("--prove", action="store_true", help="compress the data and back (prove=true)")
        parser.add_argument("--show", metavar="N", help="colour the first N bytes by their bits (show=N)")
    if command == "train":
        parser.add_argument(
            "--dry-run", action="store_true", help="only say what the run will take (dry_run=true)"
        )
    if command in ("train", "eval", "data prepare", "data inspect"):
        parser.add_argument("--json", action="store_true", help="print one JSON object (json=true)")
    if command == "generate":
        parser.add_argument("--prompt", metavar="TEXT", help="the text to continue (prompt=TEXT)")
    if command in ("compress", "decompress"):
        parser.add_argument("-o", "--output", metavar="PATH", help="the file to write (output=PATH)")
    parser.add_argument("-h", "--help", action="store_true", help="show this, the groups and the settings")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"), help="print the configuration")
    parser.add_argument("--resolve", action="store_true", help="with --cfg, resolve interpolations")
    parser.add_argument("-p", "--package", metavar="KEY", help="with --cfg, only this part")
    parser.add_argument("-m", "--multirun", action="store_true", help="sweep: a job for each of seed=0,1,2")
    parser.add_argument("-cd", "--config-dir", metavar="DIR", help="a folder of your own YAML")
    parser.add_argument(
        "-i", "--info", choices=("config", "defaults", "searchpath"), help="how it is composed"
    )
    parser.add_argument("-sc", "--shell-completion", action="store_true", help=argparse.SUPPRESS)
    return parser


def as_meant(override: str) -> str:
    """An override as Hydra has to see it, where its grammar would refuse or change what people type."""
    key, _, value = override.partition("=")
    if key == "+experiment":  # the defaults list names this group, so that it cannot be added
        return f"experiment={value}"
    if value == "~" or value.startswith("~/"):
        return f"{key}={quoted(os.path.expanduser(value))}"
    if key == "prompt" and not re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL):
        return f"{key}={quoted(value)}"  # Hydra would cut the spaces off its ends
    return override


def quoted(text: str) -> str:
    """``text`` as a value in Hydra's override grammar, so that every character stands for itself."""
    # A backslash counts only before a quote or the end, and before OmegaConf's ${.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


class _Escaped(BaseException):
    """Carries a job's exception past Hydra, which would print a line of its own or go on with the sweep."""


def run_hydra(command: str, overrides: list[str], flags: list[str]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from mambabyte.config.composition import check_settings, config_dir, explain

    def job(cfg: DictConfig) -> Any:
        settings = HydraConfig.get()
        sweeping = settings.mode == RunMode.MULTIRUN
        try:
            arguments = list(settings.overrides.task)
            if sweeping and command == "train":
                check_devices(cfg, settings.launcher._target_)
                arguments.append(own_run_dir(cfg, settings.job.override_dirname))
                arguments.append("hydra.mode=RUN")  # whatever launcher= says
            # Lightning starts the other ranks with this program's arguments: those of this job alone.
            arguments += [flag for flag in flags if flag.startswith("--config-dir=")]
            sys.argv = [program[0], *command.split(" "), *arguments]
            check_settings(command, cfg)
            return import_module(TASKS[command]).run(cfg)
        except Exception as fault:
            if sweeping and not isinstance(fault, Interrupted):
                raise
            if settings.launcher._target_.startswith(SUBMITIT):
                signal.raise_signal(
                    signal.SIGUSR1
                )  # it has saved: submitit's handler queues it again, and exits
            raise _Escaped from fault

    for override in overrides:  # Hydra keeps a sweep's in a file before any job begins
        key, _, value = override.partition("=")
        if key != "prompt":  # printed and kept nowhere
            refuse_secrets({key: value})
    # PyTorch's large tensors in huge pages: fresh memory costs a third of a long scan's time without.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # what its jobs are told to save by
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints its exceptions and exits, instead of raising them
    program = sys.argv
    sys.argv = [program[0], *overrides, *flags]
    fault: BaseException | None = None
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command.replace(" ", "_"))(
            job
        )()
    except _Escaped as escaped:
        fault = escaped.__cause__
    except Exception as raised:
        fault = raised
    finally:
        sys.argv = program
    if fault is not None:
        raise explain(fault) or fault


def check_devices(cfg: DictConfig, launcher: str) -> None:
    """Hydra's own launcher runs all jobs in this process, whose second one would join the first's ranks."""
    devices = cfg.trainer.get("devices", 1)
    if launcher.endswith(".BasicLauncher") and devices not in (1, "1"):
        raise UserError(
            f"-m runs its jobs in one process, which cannot use trainer.devices={devices} twice; "
            "set trainer.devices=1, give each job a process by launcher=submitit_local or submitit_slurm, or "
            "start the jobs one by one"
        )


def own_run_dir(cfg: DictConfig, job: str) -> str:
    """Gives a job of a sweep a run directory below the sweep's; returns the override that says the same."""
    if len(job) > 200:  # a file name ends at 255 bytes
        job = f"{job[:100]}-{hashlib.sha256(job.encode()).hexdigest()[:12]}"
    if job:
        cfg.run_dir = f"{cfg.run_dir}/{job.replace('/', '_')}"
    print(f"mambabyte: job in {cfg.run_dir}", file=sys.stderr)
    return f"run_dir={quoted(cfg.run_dir)}"


def complete(argv: list[str]) -> int:
    """Answers bash: commands from us, what follows a command from Hydra, which knows of no commands."""
    typed = os.environ.get("COMP_LINE", "").split(" ")
    words = [word for word in typed[1:-1] if word]  # whole ones: the last is being typed
    command = next((name for name in TASKS if words[: name.count(" ") + 1] == name.split(" ")), None)
    if any("query" in word for word in argv) and command is None:
        family = words[0] if words and words[0] in FAMILIES else None
        members = [name.split(" ")[1] for name in COMMANDS if name.startswith(f"{family} ")]
        print(" ".join(members or dict.fromkeys(name.split(" ")[0] for name in COMMANDS)))
        return 0
    if command is not None:
        for word in command.split(" "):
            typed.remove(word)
        os.environ["COMP_LINE"] = " ".join(typed)
    run_hydra(command or "train", argv[1:], ["--shell-completion"])
    return 0
