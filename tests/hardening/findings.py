"""The figures of the proofs: what was found beside what is allowed, as a table for people and as JSON."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One figure of one proof."""

    proof: str
    what: str
    found: float | int | str
    allowed: str
    """What the proof demands of it; empty for a figure that only informs."""


@dataclass(kw_only=True)
class Findings:
    """All figures of a run."""

    size: str
    """`short` or `long`."""
    findings: list[Finding] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)

    def add(self, proof: str, what: str, found: float | int | str, *, allowed: str = "") -> None:
        """Keep a figure, before it is asserted."""
        self.findings.append(Finding(proof=proof, what=what, found=found, allowed=allowed))

    def table(self) -> list[str]:
        """Lines for a terminal."""
        rows = [("proof", "figure", "found", "allowed")]
        rows += [(each.proof, each.what, _text(each.found), each.allowed) for each in self.findings]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return [
            f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
            for row in rows
        ]

    def write(self, path: Path, *, failed: Sequence[str]) -> None:
        """Write everything as JSON, with the names of the proofs that failed."""
        facts = {
            "schema_version": 1,
            "size": self.size,
            "seconds": round(time.monotonic() - self.started_s, 1),
            "machine": {
                "num_cpus": psutil.cpu_count(),
                "memory_bytes": psutil.virtual_memory().total,
                "system": platform.platform(),
                "python": platform.python_version(),
            },
            "failed": list(failed),
            "findings": [asdict(each) for each in self.findings],
        }
        path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _text(value: float | int | str) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:,.0f}"
        if not isinstance(value, str)
        else value
    )
