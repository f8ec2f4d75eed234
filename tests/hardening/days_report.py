"""The report of the simulated days: a page with pictures, and all figures as JSON.

usage: days_report.py FACTS FOLDER      FACTS is the output of `many_days.py`
"""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

SETTLED_DAY = 3
"""Allocators and caches have their usual size from then on."""

_PROCESSES = {
    "server": "first server, all processes",
    "worker": "its worker that is never killed",
    "supervisor": "its supervisor",
    "second_server": "second server, whose supervisor is killed each day",
}
_FIGURES = {
    "rss_bytes": "RSS",
    "pss_bytes": "PSS",
    "num_open_files": "descriptors",
    "num_mappings": "mappings",
}


def growths(days: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Growth of each figure of each process from the settled day to the last one, as a share.

    It is that of the line fitted to the days, so that the two days at the ends do not decide alone.
    """
    found = {}
    for process in _PROCESSES:
        for figure in _FIGURES:
            values = [day[process][figure] for day in days[SETTLED_DAY - 1 :]]
            slope = np.polyfit(range(len(values)), values, 1)[0]
            found[process, figure] = slope * (len(values) - 1) / values[0]
    return found


def write_report(facts: dict[str, Any], folder: Path) -> None:
    """Write `README.md`, `days.json` and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    days = facts["days"]
    text = json.dumps(facts, separators=(",", ":")).replace('{"number"', '\n{"number"')
    (folder / "days.json").write_text(text + "\n", encoding="utf-8")
    _draw(folder / "memory.png", days, {"rss_bytes": "RSS, MiB", "pss_bytes": "PSS, MiB"}, scale=2**20)
    _draw(folder / "held.png", days, {"num_open_files": "open descriptors", "num_mappings": "mappings"})
    (folder / "README.md").write_text(_page(facts), encoding="utf-8")


def _draw(path: Path, days: list[dict[str, Any]], figures: dict[str, str], *, scale: float = 1) -> None:
    picture = Figure(figsize=(9, 3.6), layout="constrained")
    numbers = [day["number"] for day in days]
    for axes, (figure, label) in zip(picture.subplots(1, 2), figures.items(), strict=True):
        for process, name in _PROCESSES.items():
            axes.plot(numbers, [day[process][figure] / scale for day in days], marker=".", label=name)
        axes.set(xlabel="day", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    picture.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    picture.savefig(path, dpi=110, metadata={"Software": None})


def _page(facts: dict[str, Any]) -> str:
    days, events = facts["days"], facts["events"]
    total = {
        name: sum(day[name] for day in days) for name in ("num_calls", "num_failed_in_flight", "num_repeated")
    }
    minutes = sum(day["seconds"] for day in days) / 60
    growth = growths(days)
    event_rows = "\n".join(f"| {event} | {count:,} |" for event, count in sorted(events.items()))
    rows = "\n".join(
        f"| {name} | " + " | ".join(_cell(days, process, figure, growth) for figure in _FIGURES) + " |"
        for process, name in _PROCESSES.items()
    )
    first, last = days[SETTLED_DAY - 1], days[-1]
    loads = [day["load"] for day in days]
    return f"""# {len(days)} simulated days

Written by `tests/hardening/days_report.py` from a run of `tests/hardening/many_days.py`.
`days.json` has every figure.
Two servers lived from {days[0]["date"]} to {last["date"]}, in {minutes:.0f} minutes.
libfaketime moved their clock by a day at a time.
Clients with TLS and tokens called both all the time, also while the clock was moved.
Transport: `{facts["transport"]}`.
Machine: {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}.
Load by the system's mean of a minute, with other work on the machine: {min(loads):g} to {max(loads):g}.

| event | count |
|---|---|
{event_rows}

## Calls

{total["num_calls"]:,} calls, all answers right.
{total["num_failed_in_flight"]} calls failed, each in flight to a process when it was killed.
{total["num_repeated"]} calls were rejected under overload, and answered when sent again.

## What was held, at the end of a day

Day {SETTLED_DAY} → day {last["number"]}, and the growth between them by the line fitted to the days.
The test allows 5 %.

| | {" | ".join(_FIGURES.values())} |
|---|{"---|" * len(_FIGURES)}
{rows}

![Memory by day](memory.png)

![Descriptors and mappings by day](held.png)

Temporary files of both servers: {_files(first)} on day {SETTLED_DAY}, {_files(last)} on day {last["number"]}.
Files in the bundle directories beside versions and `CURRENT`: {last["num_other_files"]}.
Each worker has five descriptors and mappings more on days that end with a rebuilt version: it has more files.
The second server has a process less on days that end before its process for recall has started.
"""


def _files(day: dict[str, Any]) -> str:
    return f"{day['num_temporary_files']} of {day['temporary_bytes']:,} bytes"


def _cell(days: list[dict[str, Any]], process: str, figure: str, growth: dict[tuple[str, str], float]) -> str:
    first, last = (day[process][figure] for day in (days[SETTLED_DAY - 1], days[-1]))
    is_memory = figure.endswith("bytes")
    shown = f"{first / 2**20:.1f} → {last / 2**20:.1f} MiB" if is_memory else f"{first} → {last}"
    return f"{shown} ({growth[process, figure]:+.1%})"


if __name__ == "__main__":
    write_report(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
