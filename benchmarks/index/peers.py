"""Other engines, each run as a program of its own environment; where one cannot be had, why."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

PEERS: Final = ("hnswlib", "usearch", "voyager", "scann", "svs")
_HERE: Final = Path(__file__).resolve().parents[1] / "peers" / "baselines"
_PYTHON: Final = _HERE / ".venv" / "bin" / "python"


def frontiers(
    names: Sequence[str],
    folder: Path,
    *,
    num_requests: int,
    num_candidates: int,
    threads: Sequence[int],
    limit_s: float,
) -> Iterator[dict[str, Any]]:
    """Run peers one after another.

    Args:
        names: Of `PEERS`.
        folder: As `material.prepare` fills it.
        num_requests: How many of the requests to ask.
        num_candidates: M.
        threads: Numbers of threads to search with.
        limit_s: Seconds that each may take, building included.

    Yields:
        What a peer measured, or `{"engine", "skipped"}` with the reason.
    """
    for name in names:
        if not _PYTHON.exists():
            yield {"engine": name, "skipped": f"no environment at {_PYTHON.parents[1]}: run make peers"}
            continue
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "points.json"
            words = [
                *(str(part) for part in (_PYTHON, _HERE / f"{name}_peer.py", folder.resolve(), out)),
                *("--threads", ",".join(str(number) for number in threads)),
                *("--num-candidates", str(num_candidates), "--num-requests", str(num_requests)),
            ]
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=limit_s, check=False)
            except subprocess.TimeoutExpired:
                yield {"engine": name, "skipped": f"not done after {limit_s:g} s"}
                continue
            if done.returncode != 0 or not out.exists():
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                yield {"engine": name, "skipped": f"ended with {done.returncode}: {last[-200:]}"}
                continue
            yield json.loads(out.read_text(encoding="utf-8"))
