"""Frontiers of other engines, each run as a script in an environment of its own."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from re4.benchmarks.common.peer_environments import BASELINES, missing, python_of

PEERS: Final = ("hnswlib", "usearch", "voyager", "scann", "svs")
_ENVIRONMENT: Final = ".venv"


def frontiers(
    names: Sequence[str],
    folder: Path,
    *,
    num_requests: int,
    num_candidates: int,
    threads: Sequence[int],
    limit_s: float,
) -> Iterator[dict[str, Any]]:
    """Run engines one after another, each for `limit_s` seconds at most, building included.

    The folder is as `inputs.prepare` fills it.

    Yields:
        The figures of an engine, or `{"engine", "skipped"}` with the reason.
    """
    for name in names:
        if problem := missing(_ENVIRONMENT):
            yield {"engine": name, "skipped": problem}
            continue
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "points.json"
            words = [
                *(
                    str(part)
                    for part in (
                        python_of(_ENVIRONMENT),
                        BASELINES / "engines.py",
                        name,
                        folder.resolve(),
                        out,
                    )
                ),
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
