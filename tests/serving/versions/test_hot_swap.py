"""A running server follows what is published: the sound goes live, the damaged never, no answer mixes two."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from damaged_versions import CHANGED_FILES, WRONG_PARTS, point_current_at, publish
from running_server import DEADLINE_S, PAUSE_S, RunningServer
from small_bundles import SmallVersion

from re4 import Candidates, RetrievalClient
from re4.bundle.layout import CURRENT

HISTORY = [4, 9, 30]


BASE = SmallVersion(seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("followed") / "bundles"


@pytest.fixture(scope="module")
def base(folder: Path) -> str:
    """Name of the version that the server starts with."""
    return BASE.publish(folder)


@pytest.fixture(scope="module")
def following(folder: Path, base: str) -> Iterator[RunningServer]:
    with RunningServer(folder, "--poll-interval-s", "0.02", "--max-batch-size", "4") as running:
        yield running


@pytest.fixture(scope="module")
def client(following: RunningServer) -> Iterator[RetrievalClient]:
    with RetrievalClient(following.address) as opened:
        yield opened


def info_with(client: RetrievalClient, **wanted: str) -> dict[str, object]:
    """What Info says once it says so: the log is a moment ahead of the worker."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        facts = client.info()
        if all(facts[name] == value for name, value in wanted.items()):
            return facts
        assert time.monotonic() < deadline, facts
        time.sleep(PAUSE_S)


def assert_answers(client: RetrievalClient, version: SmallVersion, name: str) -> None:
    found = client.retrieve([version.ids[row] for row in HISTORY], 10)
    assert found.item_ids == [version.ids[row] for row in version.best(HISTORY, 10)]
    assert found.version == name


@pytest.fixture
def live(folder: Path, base: str, client: RetrievalClient) -> str:
    """Name of the sound version that is live, whatever the tests before did."""
    point_current_at(folder, base)
    info_with(client, version=base, failed_version="")
    return base


def test_a_new_version_answers_and_no_answer_mixes_two(
    folder: Path, following: RunningServer, live: str
) -> None:
    answers: list[Candidates] = []

    def ask_until_it_is_new() -> None:
        with RetrievalClient(following.address) as caller:
            while not answers or answers[-1].version == live:
                answers.append(caller.retrieve([BASE.ids[row] for row in HISTORY], 10, return_interests=True))

    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(ask_until_it_is_new)
        # More items: rows of one version mean nothing in the other.
        new = SmallVersion(seed=4, num_items=90)
        versions = {live: BASE, publish(folder, new): new}
        caller.result(DEADLINE_S)
    assert {answer.version for answer in answers} == set(versions)
    for answer in answers:
        version = versions[answer.version]
        assert answer.item_ids == [version.ids[row] for row in version.best(HISTORY, 10)]
        assert answer.interests.vectors == pytest.approx(version.encode(HISTORY)[0], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    "name",
    ["truncated", "a flipped bit", "missing", "swapped", "manifest cut off"],
)
def test_changed_files_are_refused_and_the_old_version_answers(
    name: str, folder: Path, client: RetrievalClient, live: str
) -> None:
    damage, text = CHANGED_FILES[name]
    failed = publish(folder, SmallVersion(seed=10 + list(CHANGED_FILES).index(name)), damage)
    facts = info_with(client, failed_version=failed)
    assert text in facts["failure"]
    assert facts["version"] == live
    assert_answers(client, BASE, live)


@pytest.mark.parametrize(
    "name",
    [
        "encoder of another run",
        "encoder of another run that hides it",
        "index of noise behind the right signature",
        "encoder that takes data from another file",
    ],
)
def test_wrong_parts_are_refused_and_the_old_version_answers(
    name: str, folder: Path, client: RetrievalClient, live: str
) -> None:
    make, text = WRONG_PARTS[name]
    failed = publish(folder, make())
    facts = info_with(client, failed_version=failed)
    assert text in facts["failure"]
    assert facts["version"] == live
    assert_answers(client, BASE, live)


@pytest.mark.parametrize("content", ["../../etc\n", "", "20260101T000000Z-00000000\n", None])
def test_a_wrong_current_is_refused_and_the_old_version_answers(
    content: str | None, folder: Path, client: RetrievalClient, live: str
) -> None:
    if content is None:
        (folder / CURRENT).unlink()
    else:
        (folder / "wrong").write_text(content)
        (folder / "wrong").replace(folder / CURRENT)
    facts = info_with(client, failed_version=CURRENT)
    assert CURRENT in facts["failure"]
    assert_answers(client, BASE, live)


def test_a_refusal_is_said_once_and_is_over_when_current_is_right_again(
    folder: Path, following: RunningServer, client: RetrievalClient, live: str
) -> None:
    failed = publish(folder, SmallVersion(seed=30), CHANGED_FILES["a flipped bit"][0])
    info_with(client, failed_version=failed)
    point_current_at(folder, live)
    info_with(client, version=live, failed_version="", failure="")
    assert_answers(client, BASE, live)
    assert following.log.count(f"version {failed} refused") == 1
    assert "Traceback" not in following.log
