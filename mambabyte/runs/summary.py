"""What a finished run has to show: summary.json, and its few lines of text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.units import counted


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, whole or not at all."""
    with atomic_write(run_dir / "summary.json") as file:
        file.write(json.dumps(summary, indent=2, ensure_ascii=False).encode() + b"\n")


def read_summary(run_dir: Path, step: int) -> dict[str, Any] | None:
    """The summary of the run at ``step``; None if there is none."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if summary.get("step") == step else None


def report(summary: Mapping[str, Any]) -> str:
    """The end of a run in a few lines."""
    result, protocol = summary["validation"], summary["validation"]["protocol"]
    stateful = summary["validation_stateful"]
    carried = (
        [f"with the state carried through each document: {stateful['bits_per_byte']:.4f} (protocol stateful)"]
        if stateful
        else []
    )
    rivals = " | ".join(f"{name} {value:.4f}" for name, value in summary["compressors"].items())
    return "\n".join(
        (
            f"validation: {result['bits_per_byte']:.4f} bits per byte (protocol {protocol['name']}, context "
            f"{protocol['context_length']:,} bytes, {counted(result['bytes'], 'byte')} in "
            f"{counted(result['documents'], 'document')})",
            *carried,
            f"on the same bytes: {rivals}",
            "sample:",
            *(f"  {line}" for line in _printable(summary["sample"]).split("\n")),
            f"run: {summary['run_dir']} ({summary['parameters']:,} parameters, {summary['step']:,} steps)",
            f"loss curve: {summary['loss_curve']}",
        )
    )


def _printable(text: str) -> str:
    # an untrained model writes control characters too, and a terminal would obey them
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
