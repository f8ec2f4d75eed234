"""Rebuilds that are killed, run out of disk or meet another one, with a server watching the directory."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from findings import Findings
from rebuild_samples import Shop
from right_answers import RightAnswers, questions
from running_server import DEADLINE_S, RunningServer
from steady_callers import SteadyCallers, said

from bundle.current import read_current
from protos.v1 import retrieval_pb2 as pb
from serving.client import RetrievalClient

SCRIPT = Path(__file__).with_name("rebuild_and_die.py")
NUM_ITEMS = 2000
FILE_SYSTEM_BYTES = 16 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """Put `bundles` on a file system of its own where that is allowed; which accident can then be had."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FILE_SYSTEM_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield "file-size-limit"
        return
    try:
        yield "disk-full"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def rebuild_with_accidents(folder: Path, accident: str, count: int, findings: Findings) -> None:
    """Have the accidents while a server follows the directory and callers check its answers."""
    proof = f"rebuild, {accident.replace('-', ' ')}"
    shop = Shop(folder, num_items=NUM_ITEMS)
    options = ("--num-processes", "1", "--poll-interval-s", "0.05", "--max-queue-ms", "10000")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), str(SCRIPT.parents[1]), *sys.path])
    }
    with (
        RunningServer(shop.bundles, *options) as server,
        RetrievalClient(server.address) as client,
        SteadyCallers(server.address, questions(shop.version.ids), rate_per_s=20, num_callers=2) as callers,
    ):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder), accident, str(count)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        live, deadline = read_current(shop.bundles), time.monotonic() + DEADLINE_S
        while client.info()["version"] != live:
            assert time.monotonic() < deadline, client.info()
        callers.wait_for_answers(2)
    found = json.loads(done.stdout)
    versions = {pb.RetrieveReply.FromString(call.reply).version for call in callers.calls if call.is_answered}
    failed = [call for call in callers.calls if not call.is_answered]
    # The same vectors and the same encoder: every version gives the same answers.
    wrong = RightAnswers(dict.fromkeys(found["names"], shop.version)).wrong(callers.calls)
    num_refused = server.log.count("refused, the old one stays live")
    for what, figure in found["figures"].items():
        findings.add(proof, what, figure)
    findings.add(proof, "versions that the watching server went through", len(versions))
    findings.add(proof, "versions that it refused", num_refused, allowed="0")
    findings.add(proof, "calls meanwhile", len(callers.calls))
    findings.add(proof, "failed calls and wrong answers", len(failed) + len(wrong), allowed="0")
    assert not failed, said(failed)
    assert not wrong
    assert num_refused == 0, server.log


def test_killed_at_random_moments(tmp_path: Path, is_long: bool, findings: Findings) -> None:
    rebuild_with_accidents(tmp_path, "killed", 200 if is_long else 2, findings)


def test_a_disk_that_is_full(tmp_path: Path, small_disk: str, is_long: bool, findings: Findings) -> None:
    rebuild_with_accidents(tmp_path, small_disk, 100 if is_long else 2, findings)


def test_two_at_once(tmp_path: Path, is_long: bool, findings: Findings) -> None:
    rebuild_with_accidents(tmp_path, "two-at-once", 20 if is_long else 1, findings)
