"""The result of a finished run: summary.json, and a few lines of text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.terminal import visible
from mambabyte.runtime.units import accuracy_in_words, counted, protocol_in_words
from mambabyte.runtime.valid_json import valid_json


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, whole or not at all."""
    with atomic_write(run_dir / "summary.json") as file:
        file.write(valid_json(summary, indent=2, ensure_ascii=False).encode() + b"\n")


def set_summary_aside(run_dir: Path) -> None:
    """Rename the summary of earlier weights, if there is one, before others are trained."""
    path = run_dir / "summary.json"
    try:
        step = int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        path.replace(path.with_name("summary_damaged.json"))
    else:
        path.replace(path.with_name(f"summary_at_step_{step}.json"))


def read_summary(run_dir: Path, step: int, evaluate_bytes: int | None = None) -> dict[str, Any] | None:
    """The summary of the run at ``step``, measured on all validation bytes or on the first
    ``evaluate_bytes`` (0: or not measured); None if there is none, or one that cannot be reported: all
    of it can be measured again."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        report(summary)
        validation = summary["validation"]
        measured = validation["protocol"].get("max_bytes") if validation else 0
        whole = measured is None or evaluate_bytes in (0, measured)
        return summary if summary["step"] == step and whole else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def report(summary: Mapping[str, Any]) -> str:
    """The end of a run in a few lines."""
    result, stateful = summary["validation"], summary["validation_stateful"]
    lines = ["validation: not measured, as callbacks.evaluate_bytes=0 asks"]
    if result and "accuracy" in result:
        lines = [f"validation: {accuracy_in_words(result)}"]
    elif result:
        lines = [
            f"validation: {result['bits_per_byte']:.4f} bits per byte (protocol "
            f"{protocol_in_words(result['protocol'])}, {counted(result['bytes'], 'byte')} in "
            f"{counted(result['documents'], 'document')})"
        ]
    for name, part in summary.get("parts", {}).items():
        bits = f"{part['bits_per_byte']:.4f} bits per byte, {counted(part['bytes'], 'byte')}"
        lines.append(f"  {name}: {bits}")
    if stateful:
        bits = f"{stateful['bits_per_byte']:.4f}"
        lines.append(f"with the state carried through each document: {bits} (protocol stateful)")
    rivals = " | ".join(f"{name} {value:.4f}" for name, value in summary["compressors"].items())
    if worst := summary.get("worst_document"):
        bits = f"{worst['bits_per_byte']:.4f} bits per byte, {counted(worst['bytes'], 'byte')}"
        lines.append(f"worst document: {visible(worst['name'])} ({bits})")
    if rivals:
        lines.append(f"on the same bytes: {rivals}")
    if "sample" in summary:  # a task's run has none
        sample = visible(summary["sample"]).split("\n")  # an untrained model writes control characters too
        lines += ["sample:", *(f"  {line}" for line in sample)]
    size = f"{summary['parameters']:,} parameters, {summary['step']:,} steps"
    size += f", from '{visible(summary['ckpt'])}'" if summary.get("ckpt") else ""
    lines += [f"run: {summary['run_dir']} ({size})", f"loss curve: {summary['loss_curve']}"]
    return "\n".join(lines)
