"""``mambabyte doctor``: what this machine offers for training, and advice on what it lacks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mambabyte.commands import JSON, Command, Flag
from mambabyte.config.settings import Settings
from mambabyte.runtime.valid_json import valid_json

SCHEMA = 1  # of the JSON: rises when a field is removed or changes its meaning


@dataclass
class DoctorSettings(Settings):
    json: bool = False
    offline: bool = False


def run(settings: DoctorSettings) -> int:
    """Print the findings; return 0 if training can start here, else 1."""
    from mambabyte.doctor import examine

    findings = list(examine(settings.offline))
    ready = not any(finding.blocking for finding in findings)
    if settings.json:
        entries = [dataclasses.asdict(finding) for finding in findings]
        print(valid_json({"schema": SCHEMA, "ready": ready, "findings": entries}))
        return int(not ready)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = " " if finding.fix is None else "x" if finding.blocking else "!"
        print(f"{mark} {finding.name:{width}}  {finding.value}")
        if finding.fix:
            print(f"  {'':{width}}  -> {finding.fix}")
    print("Training can start." if ready else "Training cannot start: fix what is marked x.")
    return int(not ready)


COMMAND = Command(
    "check what this machine offers for training, and what to do about what is missing",
    DoctorSettings,
    run,
    flags=(JSON, Flag("--offline", "do not check whether services can be reached", "offline")),
)
