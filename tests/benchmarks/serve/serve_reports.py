"""A short `re4 bench serve` against a known server, and the report that it wrote."""

import json
from pathlib import Path
from typing import Any

from known_server import KnownServer

from re4.benchmarks.serve.options import ServeOptions


def options(server: KnownServer | str, ids: Path | None, out: Path, **changes: Any) -> ServeOptions:
    defaults: dict[str, Any] = {
        "address": server if isinstance(server, str) else server.address,
        "ids": ids,
        "arrivals": "constant",
        "warmup_s": 0.2,
        "duration_s": 0.6,
        "deadline_s": 3,
        "num_channels": 2,
        "num_candidates": 5,
        "out": out,
    }
    if not {"rate", "concurrency"} & changes.keys():
        defaults["rate"] = 50
    return ServeOptions(**(defaults | changes))


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())
