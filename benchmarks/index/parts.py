"""What was measured of a comparison so far, kept in its work folder: a report may be put together of parts.

A part is one engine at one number of threads. A later measurement of the same takes its place.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from re4.common.files import write_json

_FOLDER: Final = "measured"


def stamped(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's figures, with when and beside how much other work they were made."""
    return {
        **engine,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 1),
    }


def keep(engine: Mapping[str, Any], folder: Path, question: Mapping[str, Any]) -> None:
    """Write a part for each number of threads.

    Args:
        engine: What was measured, as `ours.frontier_of` gives it.
        folder: The work folder.
        question: What was asked, such as how many candidates: parts of other questions stay apart.
    """
    for num_threads in {point["threads"] for point in engine.get("points", [])}:
        points = [point for point in engine["points"] if point["threads"] == num_threads]
        path = folder / _FOLDER / f"{engine['engine']}-{num_threads}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"question": question, "engine": {**engine, "points": points}})


def kept(folder: Path, question: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every engine that was measured for a question, with the points of all its parts, oldest first."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / _FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        part = json.loads(path.read_text(encoding="utf-8"))
        if part["question"] == question:
            engine = part["engine"]
            points = [*found.get(engine["engine"], {}).get("points", []), *engine["points"]]
            found[engine["engine"]] = {**engine, "points": points}
    return list(found.values())
