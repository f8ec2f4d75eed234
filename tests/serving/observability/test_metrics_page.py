"""The metrics page of a real server, scraped: right counts over all workers, kept when one dies."""

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import DAY, Authority
from damaged_versions import CHANGED_FILES, publish
from in_process_server import Held, call, drive, serving
from running_server import DEADLINE_S, RunningServer, raw_call, serve_and_fail
from scraped_metrics import Scraped, scraped_with
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.common.errors import ServerError
from re4.serving.api.server import RetrievalServer
from re4.serving.host.addresses import Address
from re4.serving.observability.metrics import STAGES, SupervisorMetrics
from re4.serving.observability.metrics_page import metrics_page
from re4.serving.retrieval.pipeline import Pipeline
from re4.serving.versions.snapshot import Snapshot

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundles = tmp_path_factory.mktemp("measured") / "bundles"
    SmallVersion(seed=1).publish(bundles)
    return bundles


@pytest.fixture(scope="module")
def measured(folder: Path) -> Iterator[RunningServer]:
    options = ("--num-processes", "2", "--poll-interval-s", "0.02", "--metrics-address", "127.0.0.1:0")
    with RunningServer(folder, *options) as running:
        yield running


@pytest.fixture(scope="module")
def url(measured: RunningServer) -> str:
    return measured.wait_for(r"metrics on (http://127\.0\.0\.1:\d+/metrics)").group(1)


def test_calls_are_counted_by_method_and_status_over_all_workers(measured: RunningServer, url: str) -> None:
    before = Scraped(url)
    for _ in range(8):  # each on a connection of its own, which the kernel gives to one of the two workers
        with RetrievalClient(measured.address) as client:
            client.retrieve(["item-1-é"], 5)
    with RetrievalClient(measured.address) as client:
        client.encode(["item-1-é"])
        client.info()
        found = client.retrieve_batch([["item-1-é"], ["unknown"], ["item-2-é"]], 5)
        assert isinstance(found[1], ServerError)
        with pytest.raises(ServerError):
            client.retrieve(["item-1-é"], 0)
    with grpc.insecure_channel(measured.address) as channel:
        raw_call(channel, "Retrieve", b"\xff")
    after = scraped_with(url, before.value("re4_calls_total") + 13)

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert grown("re4_calls_total") == 13
    assert grown("re4_calls_total", method="Retrieve", code="OK") == 8
    assert grown("re4_calls_total", method="Retrieve", code="INVALID_ARGUMENT") == 2
    for method in ("Encode", "Info", "BatchRetrieve"):
        assert grown("re4_calls_total", method=method, code="OK") == 1
    assert grown("re4_call_seconds_count", method="Retrieve") == 10
    assert grown("re4_call_seconds_sum", method="Retrieve") > 0
    assert grown("re4_batch_user_errors_total", code="FAILED_PRECONDITION") == 1
    assert grown("re4_batch_size_count") == 10
    assert grown("re4_batch_size_sum") == 11  # the two good users of the BatchRetrieve shared a batch
    assert grown("re4_stage_seconds_count", stage="queue") == 9
    for stage in ("gather", "encode", "search", "merge"):
        assert grown("re4_stage_seconds_count", stage=stage) == 10
    assert {labels["stage"] for labels in after.labels("re4_stage_seconds_count")} == set(STAGES)
    assert after.value("re4_shed_total") == after.value("re4_exact_searches_total") == 0


def test_counts_outlive_a_worker_that_dies(measured: RunningServer, url: str) -> None:
    start = Scraped(url).value("re4_calls_total")
    with RetrievalClient(measured.address) as client:
        client.retrieve(["item-1-é"], 5)
    before = scraped_with(url, start + 1)
    files = count_files(measured)
    seen = measured.num_lines
    for worker in measured.workers():
        os.kill(worker, signal.SIGKILL)
    for number in (1, 2):
        measured.wait_for(rf"worker {number}: serving", after=seen)
    with RetrievalClient(measured.address) as client:
        client.retrieve(["item-1-é"], 5)
    after = scraped_with(url, start + 2)
    for scraped, num_calls in ((before, 0), (after, 1)):
        assert scraped.value("re4_calls_total", method="Retrieve", code="OK") == num_calls + before.value(
            "re4_calls_total", method="Retrieve", code="OK"
        )
    assert after.value("re4_worker_restarts_total") - before.value("re4_worker_restarts_total") == 2
    assert count_files(measured) == files  # otherwise each death would leave some


def count_files(running: RunningServer) -> set[str]:
    """The files that the workers map and count in."""
    return {
        name
        for worker in running.workers()
        for name in re.findall(r"/\S+\.db$", Path(f"/proc/{worker}/maps").read_text(), re.MULTILINE)
    }


def test_a_server_without_space_for_its_counts_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", fail)
    page = metrics_page(Address(host="127.0.0.1", port=0), SupervisorMetrics(), num_workers=1)
    with pytest.raises(ServerError, match=r"no space for the metrics .* No space left on device"), page:
        pass


def test_versions_that_went_live_or_were_refused_and_the_age_of_the_live_one(
    folder: Path, measured: RunningServer, url: str
) -> None:
    assert Scraped(url).value("re4_version_loads_total", result="ok") == 1
    seen = measured.num_lines
    good = SmallVersion(seed=2).publish(folder)
    for number in (1, 2):
        measured.wait_for(rf"worker {number}: serving {good}", after=seen)
    bad = publish(folder, SmallVersion(seed=3), CHANGED_FILES["a flipped bit"][0])
    measured.wait_for(f"version {bad} refused", after=seen)
    scraped = Scraped(url)
    assert scraped.value("re4_version_loads_total", result="ok") == 2
    assert scraped.value("re4_version_loads_total", result="failed") == 1
    assert scraped.value("re4_live_version", version=good) == scraped.value("re4_live_version") == 1
    assert 0 <= scraped.value("re4_index_age_seconds") < DEADLINE_S
    assert Scraped(url).value("re4_index_age_seconds") > scraped.value("re4_index_age_seconds")


def test_every_metric_is_in_the_readme(measured: RunningServer, url: str) -> None:
    text = PAGE.read_text()
    with RetrievalClient(measured.address) as client:
        client.retrieve(["item-1-é"], 5)
    names = {family.name for family in Scraped(url).families}
    assert len(names) > 12
    assert Scraped(url).value("re4_memory_bytes", worker="1", kind="own") > 1 << 20
    assert Scraped(url).value("re4_threads", worker="2", pool="openmp") == 1
    assert not [name for name in names if f"`{name}" not in text]


def test_when_the_certificate_ends(tmp_path: Path) -> None:
    """Told of the file as it is now: renewed, ended, or no certificate any more."""
    authority = Authority(tmp_path)
    first = authority.issue("first", ends=3 * DAY)
    facts = SupervisorMetrics(certificate=first.certificate)

    def seconds_left() -> list[float]:
        families = [family for family in facts.collect() if family.name == "re4_certificate_end_seconds"]
        return [sample.value - time.time() for family in families for sample in family.samples]

    assert seconds_left() == [pytest.approx(3 * 86_400, abs=60)]
    first.replace(authority.issue("late", begins=-2 * DAY, ends=-DAY))
    assert seconds_left() == [pytest.approx(-86_400, abs=60)]
    first.certificate.write_text("no certificate")
    assert seconds_left() == []
    facts.certificate = None
    assert seconds_left() == []


@pytest.mark.parametrize("digits", ["99999999T999999Z", "20260230T000000Z", "00000101T000000Z"])
def test_a_version_whose_name_is_no_time_has_no_age(digits: str) -> None:
    families = list(SupervisorMetrics(live=Path(f"{digits}-0123abcd")).collect())
    names = {family.name for family in families}
    assert "re4_live_version" in names
    assert "re4_index_age_seconds" not in names


def test_slow_readers_hold_few_connections_and_none_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "re4.serving.observability.metrics_page"
    monkeypatch.setattr(f"{page}.CONNECTION_TIMEOUT_S", 2 * DEADLINE_S)
    with metrics_page(Address(host="127.0.0.1", port=0), SupervisorMetrics(), num_workers=1) as (address, _):
        place = (address.host, address.port)
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(socket.create_connection(place, DEADLINE_S)) for _ in range(16)]
            one_more = stack.enter_context(socket.create_connection(place, DEADLINE_S))
            assert one_more.recv(1) == b""
            monkeypatch.setattr(f"{page}.CONNECTION_TIMEOUT_S", 0.0)
            assert [one.recv(1) for one in slow] == [b""] * 16
            monkeypatch.undo()
        assert Scraped(f"http://{address}/metrics").families


def test_there_is_no_page_unless_it_is_asked_for(server: RunningServer) -> None:
    assert "metrics on" not in server.log


def test_a_page_that_cannot_be_served_ends_the_start(folder: Path, url: str) -> None:
    taken = url.removeprefix("http://").removesuffix("/metrics")
    code, words = serve_and_fail(folder, "--metrics-address", taken)
    assert code == 1
    assert f"cannot serve metrics on {taken}: Address already in use" in words
    code, words = serve_and_fail(folder, "--metrics-address", "0.0.0.0:0")
    assert code == 2
    assert "--metrics-address 0.0.0.0:0 can be reached from other machines" in words


def counted(server: RetrievalServer, name: str, **labels: str) -> float:
    value: Any = server.metrics.registry.get_sample_value(name, labels)
    return value or 0.0


def test_calls_that_were_cancelled_shed_or_too_late(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        held.may_leave.set()
        await call(channel)
        held.entered.clear()
        held.may_leave.clear()
        in_flight = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        # There is room for one whose wait is 0, which the first may be; the others are shed.
        others = [call(channel) for _ in range(3)]
        while counted(server, "re4_shed_total", reason="overload") < 2:
            await asyncio.sleep(0)
        in_flight.cancel()
        while not counted(server, "re4_calls_total", method="Retrieve", code="CANCELLED"):
            await asyncio.sleep(0)
        held.may_leave.set()
        await asyncio.gather(*others, return_exceptions=True)
        assert counted(server, "re4_shed_total", reason="deadline") == 0
        shed = counted(server, "re4_calls_total", method="Retrieve", code="RESOURCE_EXHAUSTED")
        assert shed == counted(server, "re4_shed_total", reason="overload")

    drive(serving(replace(snapshot, pipeline=held)), test, max_queue_ms=0)


def test_answers_that_needed_an_exact_search(snapshot: Snapshot) -> None:
    class Blind:
        """An index that finds nothing."""

        failure = ""

        def search(self, queries_QD: Any, num_results: int, **how: Any) -> Any:
            scores_QS, rows_QS = searcher.search(queries_QD, num_results)
            rows_QS[:] = -1
            return scores_QS, rows_QS

        def search_all(self, *given: Any) -> Any:
            return searcher.search_all(*given)

        def search_best(self, queries_QD: Any, num_results: int, **how: Any) -> None:
            return None

    searcher = snapshot.pipeline._searcher
    pipeline = Pipeline(
        vectors_ND=snapshot.vectors_ND,
        encoder=snapshot.pipeline._encoder,
        searcher=Blind(),
        filter_cache=snapshot.filter_cache,
        max_history_length=snapshot.manifest.model.max_history_length,
    )

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        assert len((await call(channel)).items.strings) == 5
        assert counted(server, "re4_exact_searches_total") == 1

    drive(serving(replace(snapshot, pipeline=pipeline)), test)
