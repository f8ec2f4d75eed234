"""Days of two servers under load, by a moved clock, with all that may happen in a day: nothing grows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from days_report import growths, write_report
from findings import Findings
from moved_clock import MovedClock

SCRIPT = Path(__file__).with_name("many_days.py")
PROOF = "simulated days"
MAX_GROWTH = 0.05
"""Of memory and mappings, from day 3 to the last one."""


def test_nothing_grows_from_day_to_day(
    tmp_path: Path, is_long: bool, findings: Findings, request: pytest.FixtureRequest
) -> None:
    num_days, num_swaps = (24, 20) if is_long else (2, 2)
    environment = os.environ | MovedClock(tmp_path / "clock").environment
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(SCRIPT.parents[2]), str(SCRIPT.parents[1]), str(SCRIPT.parent), *sys.path]
    )
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(num_days), str(num_swaps)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    facts = json.loads(done.stdout)
    days = facts["days"]
    report = request.config.getoption("--hardening-report")
    if is_long and report is not None:
        write_report(facts, Path(report).parent / "days")
    assert [day["number"] for day in days] == list(range(1, num_days + 1))
    assert len({day["date"] for day in days}) == num_days
    assert not facts["has_traceback"]
    for event, count in facts["events"].items():
        findings.add(PROOF, event, count)
    for name in ("num_calls", "num_failed_in_flight", "num_repeated"):
        findings.add(PROOF, name[4:].replace("_", " "), sum(day[name] for day in days))
    # The temporary files: the same at the end of every day. The token's file and the counts of metrics.
    assert len({day["num_temporary_files"] for day in days}) == 1
    assert {day["num_other_files"] for day in days} == {0}
    # The process for recall holds the version of its last sample, which may be the one before.
    for process in ("worker", "supervisor"):
        assert {len(day[process]["versions"]) for day in days} == {1}
    if is_long:
        for (process, figure), growth in growths(days).items():
            what = f"growth of {figure} of the {process}, %"
            findings.add(PROOF, what, 100 * growth, allowed=f"at most {100 * MAX_GROWTH:g}")
            assert growth <= MAX_GROWTH, what
