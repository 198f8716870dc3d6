"""make audit: known weaknesses of the locked packages, by pip-audit, and their licences, by pip-licenses.

Exit code 1: a weakness is known, or a licence is not in pyproject.toml's list. What could not be asked,
because the service does not answer or does not know a package, is said and fails nothing: it is no finding.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCKS = Path(__file__).parent / "locks"
BIN = Path(sys.executable).parent


def main() -> int:
    # The service knows torch without the tag of its CPU build, as torch-cuda.lock has it.
    locks = [lock for lock in sorted(LOCKS.glob("*.lock")) if lock.name != "torch-cpu.lock"]
    found = [weaknesses(lock) for lock in locks]
    return int(any(found) | (not licences_are_allowed()))


def weaknesses(lock: Path) -> bool:
    """Whether one is known of a package in ``lock``; prints what is known, and how much is not."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [BIN / "pip-audit", "--disable-pip", "--require-hashes", "--progress-spinner=off"]
        done = subprocess.run(
            [*command, "--requirement", lock, "--format=json", "--output", report],
            capture_output=True,
            text=True,
        )
        if not report.exists():
            reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            print(f"{lock.name}: nothing was audited: {reason}")
            return False
        text, is_weak = summary(json.loads(report.read_text()))
        print(f"{lock.name}: {text}")
        return is_weak


def summary(report: dict[str, Any]) -> tuple[str, bool]:
    """What pip-audit's report says in a few lines, and whether it names a weakness."""
    packages = report["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    weak = [package for package in audited if package["vulns"]]
    lines = [f"{len(audited)} of {len(packages)} packages audited, {len(weak)} with a known weakness"]
    if len(audited) < len(packages):
        lines[0] += "; the service has no answer for the others"
    for package in weak:
        for known in package["vulns"]:
            mended = ", ".join(known["fix_versions"]) or "no version yet"
            lines.append(f"  {package['name']} {package['version']}: {known['id']}, mended in {mended}")
    return "\n".join(lines), bool(weak)


def licences_are_allowed() -> bool:
    """Whether every package of project.lock that is installed here is under a licence of the list."""
    names = re.findall(r"^([a-z0-9-]+)==", (LOCKS / "project.lock").read_text(), re.M)
    command = [BIN / "pip-licenses", "--python", sys.executable, "--packages", *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=LOCKS.parents[1])
    print(f"licences: {'all in the list' if done.returncode == 0 else done.stderr.strip()}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
