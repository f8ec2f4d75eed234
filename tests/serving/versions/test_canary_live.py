"""A canary beside the live version of a running server: who gets which, and the comparison of a shadow."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from running_server import DEADLINE_S, RunningServer, wait_until
from scraped_metrics import Scraped
from small_bundles import SmallVersion

from re4 import RetrievalClient, ServerError
from re4.bundle.items_cli import hide, unhide
from re4.bundle.layout import CANARY, INDEX
from re4.bundle.versions_cli import rollback
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.versions.canary_cli import canary

HISTORY = [4, 9, 30]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SmallVersion]]:
    """The live version is the second one: other vectors of the same items."""
    folder = tmp_path_factory.mktemp("bundles")
    made = [SmallVersion(seed=0), SmallVersion(seed=1)]
    return folder, {version.publish(folder): version for version in made}


@pytest.fixture(scope="module")
def server(both: tuple[Path, dict[str, SmallVersion]]) -> Iterator[RunningServer]:
    options = ("--poll-interval-s", "0.02", "--num-processes", "2", "--metrics-address", "127.0.0.1:0")
    # One sample is measured at a time. If each answer were one, that of the live version would always come
    # first, and on a busy machine the shadow's would always be dropped.
    options += ("--recall-sample", "0.5", "--recall-cpu-share", "1")
    with RunningServer(both[0], *options, "--histories", "none", "--fallback", "popular") as running:
        yield running


def infos(address: str) -> list[dict[str, Any]]:
    """What ten connections get, which meet both workers all but surely."""
    found = []
    while len(found) < 10:
        with suppress(ServerError), RetrievalClient(address) as client:  # a worker may be starting
            found.append(client.info())
    return found


def wait_for_canary(address: str, name: str, **facts: object) -> None:
    wanted = {"canary_version": name, **facts}
    wait_until(lambda: all(wanted.items() <= info.items() for info in infos(address)))


@pytest.fixture(scope="module")
def page(server: RunningServer) -> str:
    return server.wait_for(r"metrics on (\S+)").group(1)


def ask(address: str, history: list[Any], request_id: str) -> pb.RetrieveReply:
    """One answer on a connection of its own, so that both workers are met."""
    request = pb.RetrieveRequest(history=pb.ItemIds(strings=history), num_candidates=5)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/re4.v1.Retrieval/Retrieve", None, pb.RetrieveReply.FromString)
        reply: pb.RetrieveReply = call(
            request.SerializeToString(), timeout=DEADLINE_S, metadata=[("x-request-id", request_id)]
        )
    return reply


def test_a_share_of_the_calls_gets_the_canary_and_stays_with_it(
    server: RunningServer, both: tuple[Path, dict[str, SmallVersion]], page: str
) -> None:
    folder, versions = both
    other, live = versions
    canary(folder, other, share="30%")
    wait_for_canary(server.address, other)
    ids = versions[live].ids
    history = [ids[row] for row in HISTORY]
    before = Scraped(page)
    versions_of: dict[str, set[tuple[str, bool]]] = {}
    for number in range(120):
        name = f"call-{number % 40}"
        reply = ask(server.address, history, name)
        expected = versions[reply.version].best(HISTORY, 5)
        assert list(reply.items.strings) == [ids[row] for row in expected]
        versions_of.setdefault(name, set()).add((reply.version, reply.is_canary))
    assert all(len(found) == 1 for found in versions_of.values())
    counts = Counter(found.pop() for found in versions_of.values())
    assert set(counts) == {(other, True), (live, False)}
    assert 3 <= counts[other, True] <= 24

    def counted(role: str) -> float:
        calls = "re4_canary_calls_total"
        return Scraped(page).value(calls, role=role, code="OK") - before.value(calls, role=role, code="OK")

    wait_until(lambda: counted("canary") == 3 * counts[other, True])
    wait_until(lambda: counted("live") == 3 * counts[live, False])
    assert Scraped(page).labels("re4_canary_share") == [{"version": other, "mode": "canary"}]


def test_recall_of_both_versions_is_measured_and_shown(
    server: RunningServer, both: tuple[Path, dict[str, SmallVersion]], page: str, capsys: Any
) -> None:
    folder, versions = both
    other, live = versions
    canary(folder, other, share="50%")
    wait_for_canary(server.address, other, canary_share=0.5)
    num_asked = 0

    def are_measured() -> bool:
        nonlocal num_asked
        num_asked += 1
        ask(server.address, [versions[live].ids[row] for row in HISTORY], f"recall-{num_asked}")
        numbers = ("num_recall_samples", "num_canary_recall_samples")
        return all(info[name] for name in numbers for info in infos(server.address))

    wait_until(are_measured)
    (info, *_) = infos(server.address)
    recalls = ("canary_index_recall", "online_recall", "canary_online_recall")
    assert [info[name] for name in recalls] == [1.0, 1.0, 1.0]
    capsys.readouterr()
    canary(folder, metrics=[page], as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["canary"]["version"] == other
    assert [each["version"] for each in shown["versions"]] == [live, other]
    assert all(each["recall"].startswith("1.000 (") for each in shown["versions"])
    canary(folder, metrics=[page])
    assert "1.000 (" in capsys.readouterr().out


def test_hidden_items_are_hidden_in_both(
    server: RunningServer, both: tuple[Path, dict[str, SmallVersion]]
) -> None:
    folder, versions = both
    other, live = versions
    ids = versions[live].ids
    canary(folder, other, share="50%")
    wait_for_canary(server.address, other, canary_share=0.5)
    best = [ids[version.best(HISTORY, 1)[0]] for version in versions.values()]
    hide(folder, best)
    try:
        wait_until(lambda: all(info["num_hidden_items"] == len({*best}) for info in infos(server.address)))
        for number in range(30):
            reply = ask(server.address, [ids[row] for row in HISTORY], f"hidden-{number}")
            assert not {*best} & {*reply.items.strings}
    finally:
        unhide(folder, best)


def test_a_shadow_answers_nobody_and_is_compared(
    server: RunningServer, both: tuple[Path, dict[str, SmallVersion]], page: str
) -> None:
    folder, versions = both
    other, live = versions
    ids = versions[live].ids
    canary(folder, other, share="100%", shadow=True)
    wait_for_canary(server.address, other, canary_is_shadow=True)
    (info, *_) = infos(server.address)
    num_asked, num_before = 0, info["num_canary_recall_samples"]

    def compared() -> float:
        nonlocal num_asked
        reply = ask(server.address, [ids[row] for row in HISTORY], f"shadow-{num_asked}")
        num_asked += 1
        assert (reply.version, reply.is_canary) == (live, False)
        return Scraped(page).value("re4_shadow_calls_total", result="compared")

    wait_until(lambda: compared() >= 3)
    scraped = Scraped(page)
    lists = [{*version.best(HISTORY, 5)} for version in versions.values()]
    overlap = len(lists[0] & lists[1]) / 5
    num, total = (scraped.value(f"re4_shadow_overlap_{part}") for part in ("count", "sum"))
    assert total / num == pytest.approx(overlap)
    assert scraped.value("re4_shadow_calls_total", result="failed") == 0
    assert scraped.value("re4_shadow_seconds_count", role="shadow") == num

    def is_measured() -> bool:
        compared()
        return all(info["num_canary_recall_samples"] > num_before for info in infos(server.address))

    wait_until(is_measured)


def test_a_canary_that_cannot_be_used_ends_it_and_calls_go_on(
    server: RunningServer, both: tuple[Path, dict[str, SmallVersion]]
) -> None:
    folder, versions = both
    other, live = versions
    ids = versions[live].ids
    canary(folder, other, share="100%")
    wait_for_canary(server.address, other, canary_share=1.0)
    (folder / CANARY).write_text("[" * 4000)
    wait_for_canary(server.address, "")
    assert all(CANARY in info["canary_failure"] for info in infos(server.address))
    reply = ask(server.address, [ids[row] for row in HISTORY], "after")
    assert (reply.version, reply.is_canary) == (live, False)
    damaged = SmallVersion(seed=2).publish(folder)
    rollback(folder, live)
    canary(folder, damaged, share="100%")
    (folder / damaged / INDEX).write_bytes(b"damaged")
    wait_until(lambda: all(info["canary_failure"] for info in infos(server.address)))
    assert {info["canary_version"] for info in infos(server.address)} == {""}
    (folder / CANARY).unlink()
    wait_until(lambda: not any(info["canary_failure"] for info in infos(server.address)))


def test_a_promoted_canary_is_the_live_version(
    server: RunningServer, both: tuple[Path, dict[str, SmallVersion]]
) -> None:
    folder, versions = both
    other, live = versions
    canary(folder, other, share="100%")
    wait_for_canary(server.address, other)
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)  # their successors load both versions
    wait_for_canary(server.address, other)
    canary(folder, promote=True)
    wait_for_canary(server.address, "", version=other)
    reply = ask(server.address, [versions[live].ids[row] for row in HISTORY], "promoted")
    assert (reply.version, reply.is_canary) == (other, False)
