"""``mambabyte doctor``: what this machine has to train with, and a line of advice on each thing it lacks."""

from __future__ import annotations

import dataclasses
import json

from mambabyte.doctor import examine

SCHEMA = 1  # of the JSON: rises when a field goes or changes its meaning


def run(as_json: bool = False, offline: bool = False) -> int:
    """Prints the findings; returns 0 if training can start here, else 1."""
    findings = list(examine(offline))
    ready = not any(finding.blocking for finding in findings)
    if as_json:
        entries = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"schema": SCHEMA, "ready": ready, "findings": entries}))
        return int(not ready)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = " " if finding.fix is None else "x" if finding.blocking else "!"
        print(f"{mark} {finding.name:{width}}  {finding.value}")
        if finding.fix:
            print(f"  {'':{width}}  -> {finding.fix}")
    print("Training can start." if ready else "Training cannot start: mend what is marked x.")
    return int(not ready)
