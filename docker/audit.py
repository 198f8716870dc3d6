"""`make audit`: check the locked packages for known vulnerabilities (pip-audit) and licences (pip-licenses).

The exit code is 1 if a vulnerability is known or a licence is not in pyproject.toml's list. A package that
could not be checked, because the service does not answer or does not know it, is reported but is no failure.
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
    # The service knows no "+cpu" versions; torch-cuda.lock has the same torch without that tag.
    locks = [lock for lock in sorted(LOCKS.glob("*.lock")) if lock.name != "torch-cpu.lock"]
    vulnerable = [has_vulnerabilities(lock) for lock in locks]
    return int(any(vulnerable) | (not licences_are_allowed()))


def has_vulnerabilities(lock: Path) -> bool:
    """Audit the packages in ``lock`` and print the result."""
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
        text, vulnerable = summary(json.loads(report.read_text()))
        print(f"{lock.name}: {text}")
        return vulnerable


def summary(report: dict[str, Any]) -> tuple[str, bool]:
    """A few lines on pip-audit's report, and whether it lists a vulnerability."""
    packages = report["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    vulnerable = [package for package in audited if package["vulns"]]
    lines = [
        f"{len(audited)} of {len(packages)} packages audited, {len(vulnerable)} with a known vulnerability"
    ]
    if len(audited) < len(packages):
        lines[0] += "; the service has no answer for the others"
    for package in vulnerable:
        for known in package["vulns"]:
            fixed = (
                f"fixed in {', '.join(known['fix_versions'])}" if known["fix_versions"] else "not fixed yet"
            )
            lines.append(f"  {package['name']} {package['version']}: {known['id']}, {fixed}")
    return "\n".join(lines), bool(vulnerable)


def licences_are_allowed() -> bool:
    """Whether every installed package of project.lock has an allowed licence."""
    names = re.findall(r"^([a-z0-9-]+)==", (LOCKS / "project.lock").read_text(), re.M)
    command = [BIN / "pip-licenses", "--python", sys.executable, "--packages", *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=LOCKS.parents[1])
    print(f"licences: {'all allowed' if done.returncode == 0 else done.stderr.strip()}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
