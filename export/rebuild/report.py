"""The report of a rebuild: stages with times, gates, counts, outcome.

It is written as JSON for people and programs, and as a text file of metrics for Prometheus's node exporter.
Both files are replaced as a whole.
"""

import json
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from re4.common.errors import Re4Error
from re4.common.files import replacing, write_json

OUTCOMES: Final = {
    0: "published",
    1: "failed",
    2: "wrong use",
    3: "gate failed",
    4: "busy",
    130: "interrupted",
    143: "interrupted",
}
"""Outcome by exit code."""

DRY_RUN: Final = "dry run"
_LAST_SUCCESS: Final = "re4_rebuild_last_success_timestamp_seconds"


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """The figure of one gate, with its bounds."""

    name: str
    figure: float
    low: float | None = None
    """The figure must be at least this."""
    high: float | None = None
    """The figure must be at most this."""
    meaning: str
    """The figure in words, for the operator."""
    advice: str
    """The next step where it failed."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further figures, for the report."""

    @property
    def passed(self) -> bool:
        """True where the figure keeps its bounds."""
        at_least = self.low is None or self.figure >= self.low
        return at_least and (self.high is None or self.figure <= self.high)

    @property
    def bounds(self) -> str:
        """The allowed figures, in words."""
        low = "" if self.low is None else f"at least {self.low:.4g}"
        high = "" if self.high is None else f"at most {self.high:.4g}"
        return " and ".join(part for part in (low, high) if part) or "anything"


@dataclass(kw_only=True)
class RebuildReport:
    """The report of a rebuild, filled in while the job runs."""

    bundles: str
    """The bundle directory."""
    dry_run: bool
    """Whether nothing was to be published."""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    """Start of the job, UTC."""
    stages_s: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage, in order; the last one may be unfinished."""
    gates: list[GateResult] = field(default_factory=list)
    """Name, figure and bounds of each gate, and whether it passed."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and names, as they become known."""
    exit_code: int = 1
    """Exit code of the subcommand."""
    error: str = ""
    """Why the job failed; empty where it did not."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage, also where the block raises."""
        began_s = perf_counter()
        try:
            yield
        finally:
            self.stages_s[name] = round(perf_counter() - began_s, 3)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Record how the block ends."""
        try:
            yield
            self.exit_code = 0
        except Re4Error as error:
            self.exit_code, self.error = error.exit_code, str(error)
            raise
        except KeyboardInterrupt:
            self.exit_code = 130
            raise
        except SystemExit as ending:
            self.exit_code = ending.code if isinstance(ending.code, int) else 1
            raise
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}"
            raise

    @property
    def version(self) -> str | None:
        """Name of the published version; None where nothing was published."""
        return self.facts.get("version")

    @property
    def outcome(self) -> str:
        """The outcome, in a word or two."""
        if self.exit_code == 0 and self.dry_run:
            return DRY_RUN
        return OUTCOMES.get(self.exit_code, "failed")

    def to_json(self) -> dict[str, Any]:
        """Return everything in plain values."""
        ended = datetime.now(UTC)
        return {
            "outcome": self.outcome,
            "exit_code": self.exit_code,
            "error": self.error,
            "bundles": self.bundles,
            "began_at": self.began.isoformat(timespec="seconds"),
            "ended_at": ended.isoformat(timespec="seconds"),
            "seconds": round((ended - self.began).total_seconds(), 3),
            "stages_s": self.stages_s,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            **self.facts,
            "gates": [{**asdict(gate), "passed": gate.passed} for gate in self.gates],
        }

    def write(self, file: Path) -> None:
        """Replace a file by the report."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, self.to_json())

    def write_metrics(self, file: Path) -> None:
        """Replace a text file of Prometheus metrics; keep the old file's time of the last success."""
        file.parent.mkdir(parents=True, exist_ok=True)
        content = generate_latest(self._registry(_last_success_s(file)))
        with replacing(file) as part:
            part.write_bytes(content)
            part.chmod(0o644)  # another user's exporter reads it

    def _registry(self, last_success_s: float) -> CollectorRegistry:
        values, registry = self.to_json(), CollectorRegistry()

        def gauge(name: str, meaning: str, value: float) -> None:
            Gauge(f"re4_rebuild_{name}", meaning, registry=registry).set(value)

        ended_s = datetime.now(UTC).timestamp()
        is_success = self.exit_code == 0
        gauge("success", "1 where the last job ended well, 0 where it did not.", float(is_success))
        gauge("exit_code", "Exit code of the last job.", self.exit_code)
        gauge("last_run_timestamp_seconds", "When the last job ended, whatever its outcome.", ended_s)
        Gauge(_LAST_SUCCESS, "When a job last published; 0 for never.", registry=registry).set(
            ended_s if is_success and not self.dry_run else last_success_s
        )
        gauge("seconds", "Duration of the last job.", values["seconds"])
        gauge("peak_memory_bytes", "Peak memory of the last job's process.", values["peak_memory_bytes"])
        stages = Gauge("re4_rebuild_stage_seconds", "Time by stage.", ["stage"], registry=registry)
        for name, seconds in self.stages_s.items():
            stages.labels(name).set(seconds)
        counts = Gauge(
            "re4_rebuild_items", "Items by outcome: live, cold or removed.", ["kind"], registry=registry
        )
        for kind in ("live", "cold", "removed"):
            if f"num_{kind}" in self.facts:
                counts.labels(kind).set(self.facts[f"num_{kind}"])
        listed = Gauge(
            "re4_rebuild_coverage",
            "Share of items in the list of any held-out user: all, new, or a tenth by popularity.",
            ["items"],
            registry=registry,
        )
        for gate in self.gates:
            if gate.details and gate.name == "coverage":
                tenths = {
                    f"tenth_{number + 1}": each for number, each in enumerate(gate.details["by_popularity"])
                }
                shares = {"all": gate.figure, "new": gate.details["new"], **tenths}
                for name, share in shares.items():
                    if share is not None:
                        listed.labels(name).set(share)
        figures = Gauge("re4_rebuild_gate_figure", "Figure of each gate.", ["gate"], registry=registry)
        passed = Gauge("re4_rebuild_gate_passed", "1 where the gate passed.", ["gate"], registry=registry)
        for gate in self.gates:
            figures.labels(gate.name).set(gate.figure)
            passed.labels(gate.name).set(float(gate.passed))
        return registry


def _last_success_s(file: Path) -> float:
    """Return the time of the last publication from an earlier file; 0 where there is none."""
    try:
        for line in file.read_text("utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name == _LAST_SUCCESS:
                return float(value)
    except (OSError, ValueError):
        pass
    return 0.0


def gate_figures(gates: list[GateResult]) -> dict[str, Any]:
    """Return the gates' figures, for a manifest."""
    facts: dict[str, Any] = json.loads(json.dumps({gate.name: round(gate.figure, 6) for gate in gates}))
    return facts
