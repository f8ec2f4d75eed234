"""Look up everything in `locks/` in a database of known vulnerabilities, by pip-audit.

    make audit

Exit code 1: a vulnerability is known. Exit code 0: none is known, or the database cannot be reached, which is
reported.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCKS = Path(__file__).parents[1] / "locks"


def main() -> int:
    """Audit each package of each lock once."""
    findings, num_audited, skipped = [], 0, {}
    for package in _audited():
        if "skip_reason" in package:
            skipped[package["name"]] = package["skip_reason"]
            continue
        num_audited += 1
        findings += [(package["name"], package["version"], each) for each in package["vulns"]]
    for name, version, each in findings:
        fixed = ", ".join(each["fix_versions"]) or "no version yet"
        print(f"{name} {version}: {each['id']}, fixed in {fixed}")
    if num_audited == 0:
        print(
            f"NOT AUDITED: the database of vulnerabilities cannot be reached from here ({_example(skipped)})"
        )
        return 0
    print(f"{num_audited} packages audited, {len(findings)} vulnerabilities known, {len(skipped)} not found")
    return 1 if findings else 0


def _audited() -> list[dict[str, Any]]:
    files = sorted(LOCKS.glob("*.txt"))
    words = [
        "--disable-pip",
        "--require-hashes",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        "10",
    ]
    words += [word for file in files for word in ("--requirement", str(file))]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, check=False
    )
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        if "ConnectionError" not in done.stderr and "ServiceError" not in done.stderr:
            sys.exit(done.stderr)
        return [{"name": "pip-audit", "skip_reason": done.stderr.strip().splitlines()[-1]}]
    return packages


def _example(skipped: dict[str, str]) -> str:
    return next(iter(skipped.values()), "no package")


if __name__ == "__main__":
    sys.exit(main())
