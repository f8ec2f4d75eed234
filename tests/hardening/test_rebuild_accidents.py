"""Rebuilds that are killed, run out of disk or meet another one, with a server watching the directory."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from file_systems import small_file_system
from findings import Findings
from rebuild_samples import Shop
from right_answers import RightAnswers, questions
from running_server import DEADLINE_S, PAUSE_S, RunningServer
from small_bundles import SmallVersion
from steady_callers import SteadyCallers, said

from re4 import RetrievalClient
from re4.bundle.publishing.current import read_current
from re4.protos.v1 import retrieval_pb2 as pb

SCRIPT = Path(__file__).with_name("rebuild_and_die.py")
NUM_ITEMS = 2000
FILE_SYSTEM_BYTES = 16 << 20
COUNTS = {"killed": (200, 2), "disk-full": (100, 2), "two-at-once": (20, 1)}
"""Accidents of each kind, in the long and the short size."""


class Watched:
    """A process that has rebuilds meet with accidents, and a server that follows their directory."""

    def __init__(self, folder: Path, *, can_be_full: bool, stack: ExitStack) -> None:
        self.can_be_full = can_be_full
        shop = Shop(folder, num_items=NUM_ITEMS)
        self._bundles = shop.bundles
        self.version: SmallVersion = shop.version
        options = ("--num-processes", "1", "--poll-interval-s", "0.05", "--max-queue-ms", "10000")
        self.server = stack.enter_context(RunningServer(shop.bundles, *options))
        self._client = stack.enter_context(RetrievalClient(self.server.address))
        paths = [str(SCRIPT.parents[2]), str(SCRIPT.parents[1]), *sys.path]
        self._accidents = stack.enter_context(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
        )

    def have(self, accident: str, count: int) -> dict[str, Any]:
        """Have so many accidents; the figures, once the server has caught up."""
        self._accidents.stdin.write(f"{accident} {count}\n")
        self._accidents.stdin.flush()
        line = self._accidents.stdout.readline()
        assert line, self._accidents.communicate()[1]
        live, deadline = read_current(self._bundles), time.monotonic() + DEADLINE_S
        while (facts := self._client.info())["version"] != live:
            assert time.monotonic() < deadline, facts
            time.sleep(PAUSE_S)
        found: dict[str, Any] = json.loads(line)
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Watched]:
    if (given := request.config.getoption("--hardening-folder")) is not None:
        with TemporaryDirectory(dir=given) as folder, ExitStack() as stack:
            yield Watched(Path(folder), can_be_full=False, stack=stack)
        return
    folder = tmp_path_factory.mktemp("rebuilt")
    with small_file_system(folder / "bundles", FILE_SYSTEM_BYTES) as can_be_full, ExitStack() as stack:
        yield Watched(folder, can_be_full=can_be_full, stack=stack)


@pytest.mark.parametrize("accident", COUNTS)
def test_accidents_of_a_rebuild(accident: str, watched: Watched, is_long: bool, findings: Findings) -> None:
    count = COUNTS[accident][0 if is_long else 1]
    if accident == "disk-full" and not watched.can_be_full:
        accident = "file-size-limit"
    proof = f"rebuild, {accident.replace('-', ' ')}"
    seen = watched.server.num_lines
    with SteadyCallers(
        watched.server.address, questions(watched.version.ids), rate_per_s=20, num_callers=2
    ) as callers:
        found = watched.have(accident, count)
        callers.wait_for_answers(2)
    answered = [call for call in callers.calls if call.is_answered]
    failed = [call for call in callers.calls if not call.is_answered]
    # The same vectors and the same encoder: every version gives the same answers.
    wrong = RightAnswers(dict.fromkeys(found["names"], watched.version)).wrong(answered)
    num_refused = "".join(watched.server.log.splitlines(keepends=True)[seen:]).count("refused, the old one")
    for what, figure in found["figures"].items():
        findings.add(proof, what, figure)
    versions = {pb.RetrieveReply.FromString(call.reply).version for call in answered}
    findings.add(proof, "versions that the watching server went through", len(versions))
    findings.add(proof, "versions that it refused", num_refused, allowed="0")
    findings.add(proof, "calls meanwhile", len(callers.calls))
    findings.add(proof, "failed calls and wrong answers", len(failed) + len(wrong), allowed="0")
    assert not failed, said(failed)
    assert not wrong
    assert num_refused == 0, watched.server.log
