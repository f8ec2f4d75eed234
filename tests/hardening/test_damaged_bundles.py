"""Damaged versions before a live server: each is refused and named, or harmless; no answer is ever wrong.

Every damaged version is verified as the server's check does it. A sample of those that are refused so, and
all others, are then put before a server that follows the directory: a process for each takes its time.
"""

import random
import shutil
import time
from collections import Counter
from pathlib import Path

import grpc
from bundle_damages import VERSION_DAMAGES, damage_current
from findings import Findings
from right_answers import RightAnswers, questions
from running_server import DEADLINE_S, PAUSE_S, RunningServer
from small_bundles import SmallVersion
from steady_callers import SteadyCallers, said

from re4 import RetrievalClient
from re4.bundle.layout import CURRENT
from re4.bundle.verify import verify_version
from re4.common.errors import BundleError

PROOF = "damaged bundles"
GOOD, NEW, OTHER = SmallVersion(seed=1), SmallVersion(seed=2), SmallVersion(seed=3)
"""What is live; what is damaged, again and again; whose files are of the same sizes."""


def point_current_at(bundles: Path, name: str) -> None:
    """Make a version live, whatever `CURRENT` was before."""
    current = bundles / CURRENT
    if current.is_dir() and not current.is_symlink():
        current.rmdir()
    (bundles / "next").write_text(f"{name}\n")
    (bundles / "next").replace(current)


def verdict(client: RetrievalClient, names: set[str]) -> str:
    """What became of what was published: why it was refused; nothing where it went live.

    `names` are those that a refusal may give.
    """
    deadline = time.monotonic() + DEADLINE_S
    while True:
        facts = client.info()
        if facts["failed_version"]:
            assert facts["failed_version"] in names
            return str(facts["failure"])
        if facts["version"] in names:
            return ""
        assert time.monotonic() < deadline, facts
        time.sleep(PAUSE_S)


def test_damaged_bundles_before_a_live_server(tmp_path: Path, is_long: bool, findings: Findings) -> None:
    num_damaged, live_every = (1000, 30) if is_long else (24, 30)
    rng = random.Random(0)
    bundles, elsewhere = tmp_path / "bundles", tmp_path / "elsewhere"
    good = GOOD.publish(bundles)
    pristine, other = elsewhere / NEW.publish(elsewhere), elsewhere / OTHER.publish(elsewhere)
    new = pristine.name
    answers = RightAnswers({good: GOOD, new: NEW})
    asked = questions(GOOD.ids)
    refused: Counter[str] = Counter()
    harmless: Counter[str] = Counter()
    num_live = 0
    kinds = [*VERSION_DAMAGES, "CURRENT"]
    began = time.monotonic()
    options = ("--num-processes", "1", "--poll-interval-s", "0.02", "--max-queue-ms", "10000")
    with (
        RunningServer(bundles, *options) as server,
        RetrievalClient(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
        SteadyCallers(server.address, asked, rate_per_s=20, num_callers=2) as callers,
    ):
        workers = server.workers()
        ask = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
        for number in range(num_damaged):
            kind = kinds[number % len(kinds)]
            shutil.copytree(pristine, bundles / new, symlinks=True)
            seen = server.num_lines
            if kind == "CURRENT":
                damage_current(bundles, rng)
                is_live = read(bundles / CURRENT) != good  # else it lost its line's end: nothing to tell
            else:
                rng.choice(VERSION_DAMAGES[kind])(bundles / new, other, rng)
                is_refused = refuses(bundles / new)
                is_live = not is_refused or number % live_every < len(kinds)
                if is_live:
                    point_current_at(bundles, new)
                else:
                    refused[kind] += 1
            if is_live:
                num_live += 1
                server.wait_for(r"refused, the old one stays live|going live", after=seen)
                failure = verdict(client, {new, CURRENT})
                assert not failure or new in failure or CURRENT in failure
                (refused if failure else harmless)[kind] += 1
                for question, request in enumerate(asked):
                    reply = ask(request.SerializeToString(), timeout=DEADLINE_S)
                    assert answers.is_right(question, reply), f"damage {number}, {kind}: a wrong answer"
                point_current_at(bundles, good)
                wait_until_live(client, good)
            elif kind == "CURRENT":
                harmless[kind] += 1
            shutil.rmtree(bundles / new)
        assert server.workers() == workers
    seconds = time.monotonic() - began
    failed = [call for call in callers.calls if not call.is_answered]
    wrong = answers.wrong(callers.calls)
    findings.add(PROOF, "damaged bundles", num_damaged)
    findings.add(PROOF, "of them before a live server", num_live)
    for kind in kinds:
        findings.add(PROOF, f"{kind}: refused", refused[kind])
        findings.add(PROOF, f"{kind}: harmless, answers right", harmless[kind])
    findings.add(PROOF, "good calls meanwhile", len(callers.calls))
    findings.add(PROOF, "wrong answers", len(wrong), allowed="0")
    findings.add(PROOF, "failed calls", len(failed), allowed="0")
    findings.add(PROOF, "crashes", server.log.count("ended with signal"), allowed="0")
    findings.add(PROOF, "seconds for each", seconds / num_damaged)
    assert not failed, said(failed)
    assert not wrong
    assert "Traceback" not in server.log
    assert "ended with signal" not in server.log


def refuses(version: Path) -> bool:
    """Whether verification, the first thing that a server's check does, refuses a version."""
    try:
        verify_version(version)
    except BundleError:
        return True
    return False


def read(path: Path) -> str:
    """The name in a plain `CURRENT`; nothing where it is none."""
    if path.is_symlink() or not path.is_file():
        return ""
    return path.read_bytes().decode("latin-1").removesuffix("\n")


def wait_until_live(client: RetrievalClient, name: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (facts := client.info())["version"] != name or facts["failed_version"]:
        assert time.monotonic() < deadline, facts
        time.sleep(PAUSE_S)
