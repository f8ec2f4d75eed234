"""Writers and compactions of live items that are killed: nothing acknowledged is lost, nothing is damaged."""

import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from re4.bundle.live_items.compaction import compact, repair
from re4.bundle.live_items.reader import LiveItemsReader
from re4.bundle.live_items.state import read_live_state

SCRIPT = Path(__file__).with_name("write_and_die.py")


def run_and_kill(bundles: Path, seed: int, kind: str, wait_s: float, *, num_first: int = 0) -> int:
    """Run a writer or compactor, kill it after some time, and return the last acknowledged sequence.

    The time begins after the first commits, as many as `num_first`: a machine may be slow.
    """
    command = [sys.executable, str(SCRIPT), str(bundles), str(seed), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        first = [child.stdout.readline() for _ in range(num_first)]
        with suppress(subprocess.TimeoutExpired):
            child.wait(wait_s)
        child.send_signal(signal.SIGKILL)
        lines = [*first, *child.stdout.read().splitlines(keepends=True)]
        lines = [line for line in lines if line.endswith("\n")]
    return max((int(line.split()[0]) for line in lines), default=0)


def test_killed_at_random_moments(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    num_kills = 200 if request.config.getoption("--hardening") == "long" else 8
    rng = random.Random(7)
    acknowledged, follower, seen = 0, LiveItemsReader(tmp_path), []
    for seed in range(num_kills):
        kind = "compact" if seed % 4 == 3 else "write"
        wait_s, num_first = rng.uniform(0.0, 0.15), 1 if seed == 0 else 0
        acknowledged = max(acknowledged, run_and_kill(tmp_path, seed, kind, wait_s, num_first=num_first))
        new = follower.read()
        seen = (
            [record.sequence for record in new.records]
            if new.is_reset
            else [*seen, *(record.sequence for record in new.records)]
        )
        assert new.sequence >= acknowledged
        assert seen == sorted(set(seen))
    state = read_live_state(tmp_path)
    assert state.sequence >= acknowledged > 0
    before = {id_: record.sequence for id_, record in state.items.items()}
    weights = {key: each.weight for key, each in state.evidence.items()}
    compact(tmp_path)
    again = read_live_state(tmp_path)
    assert {id_: record.sequence for id_, record in again.items.items()} == before
    assert {key: each.weight for key, each in again.evidence.items()} == pytest.approx(weights)
    listed = {path.name for path in (tmp_path / "live").iterdir()}
    assert len(listed) == 2, "the compacted segment and the one for new changes"
    (tmp_path / "LIVE").unlink()
    assert repair(tmp_path).damages == []
    assert {id_: record.sequence for id_, record in read_live_state(tmp_path).items.items()} == before
