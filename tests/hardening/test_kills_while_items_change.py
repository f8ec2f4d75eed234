"""kill -9 of worker, supervisor, rebuild and writer while items change: nothing acknowledged is lost."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from rebuild_samples import Shop
from running_server import DEADLINE_S, PAUSE_S, RE4, RunningServer

from re4 import LiveItem, RetrievalClient, Retriever, ServerError
from re4.bundle.live_items.state import read_live_state
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest

NUM_IDS = 30
NUM_FILES = 32
"""Of which every fourth is written."""
NUM_CANDIDATES = 30_000
"""More than all items of the catalogue and of the files."""
BOUNDS: tuple[Any, ...] = (
    *("--keep", 1, "--min-overlap", 0, "--max-item-share", 1, "--max-item-share-rise", 1),
    # Any number of commits of the writer counts: some thousand items, or none, beside 200.
    *("--max-items-ratio", 1000, "--min-items-ratio", 0, "--max-bytes-ratio", 1000, "--min-bytes-ratio", 0),
    *(
        "--min-hubness-ratio",
        0,
        "--min-coverage-ratio",
        0,
        "--min-new-items-ratio",
        0,
        "--min-self-recall",
        0,
    ),
)
OPTIONS = ("--num-processes", "2", "--max-num-candidates", "100000", "--histories", "none")


class Changes:
    """Changes by calls, and which items answers must contain after them."""

    def __init__(self, ids: list[Any], seed: int) -> None:
        self.is_there: dict[Any, bool] = dict.fromkeys(ids, True)
        self.unknown: set[Any] = set()
        self.rng = random.Random(seed)
        self.sequence = 0

    def make(self, client: RetrievalClient, num_calls: int) -> None:
        for _ in range(num_calls):
            ids = [f"live {self.rng.randrange(NUM_IDS)}", self.rng.choice(list(self.is_there))]
            is_there = self.rng.random() < 0.6
            self.unknown.update(ids)
            with contextlib.suppress(ServerError):  # not acknowledged: either state is right
                done = (
                    client.upsert_items([LiveItem(item_id=id_) for id_ in ids])
                    if is_there
                    else client.remove_items(list(dict.fromkeys(ids)))
                )
                self.sequence = max(self.sequence, done.sequence)
                self.is_there.update(dict.fromkeys(ids, is_there))
                self.unknown.difference_update(ids)

    def check(self, found: list[Any]) -> None:
        assert len(found) == len(set(found)), "an item twice"
        own = {id_ for id_ in found if not str(id_).startswith("file")}
        expected = {id_ for id_, is_there in self.is_there.items() if is_there}
        assert own - self.unknown == expected - self.unknown


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_kills_while_items_change(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    num_kills = 200 if request.config.getoption("--hardening") == "long" else 4
    shop = Shop(tmp_path)
    changes, rng = Changes(shop.version.ids, 3), random.Random(5)
    history = shop.version.ids[:4]
    file = tmp_path / "new.jsonl"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RunningServer(shop.bundles, *OPTIONS))
        for number in range(num_kills):
            victim = ("worker", "rebuild", "writer", "supervisor")[number % 4]
            process = None
            if victim == "rebuild":
                words = [*RE4, *shop.line(*BOUNDS)]
                process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            elif victim == "writer":
                id_ = f"file {number % NUM_FILES}"
                lines = [json.dumps({"id": f"{id_} {line}"}) for line in range(2_500)]
                file.write_text("\n".join(lines) + "\n")
                words = [*RE4, "items", "add", str(file), "--bundles", str(shop.bundles)]
                process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with RetrievalClient(server.address, timeout_s=20.0) as client:
                changes.make(client, rng.randrange(1, 8))
                if process is not None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(rng.uniform(0.2, 3.0))
                    kill(process)
                elif victim == "worker":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(sorted(server.workers())), signal.SIGKILL)
                else:
                    server.signal(signal.SIGKILL)
                    server = stack.enter_context(RunningServer(shop.bundles, *OPTIONS))
            with RetrievalClient(server.address, timeout_s=20.0) as client:
                changes.make(client, rng.randrange(1, 8))
        state = read_live_state(shop.bundles)
        assert state.sequence >= changes.sequence
        written = [id_ for id_ in state.items if str(id_).startswith("file")]
        by_file: dict[str, int] = {}
        for id_ in written:
            key = str(id_).split()[1]
            by_file[key] = by_file.get(key, 0) + 1
        assert all(num in (1_000, 2_000, 2_500) for num in by_file.values()), "whole commits"
        with Retriever.open(shop.bundles) as retriever:
            changes.check(retriever.retrieve(history, NUM_CANDIDATES).item_ids)
        error, report = shop.rebuild(*BOUNDS)
        assert error is None, report
        manifest = read_manifest(live_version(shop.bundles))
        assert manifest.live_sequence == state.sequence
        until = time.monotonic() + DEADLINE_S
        with RetrievalClient(server.address, timeout_s=20.0) as client:
            while True:
                with contextlib.suppress(ServerError):
                    facts = client.info()
                    if facts["version"] == manifest.version:
                        break
                assert time.monotonic() < until
                time.sleep(PAUSE_S)
            changes.check(client.retrieve(history, NUM_CANDIDATES).item_ids)
