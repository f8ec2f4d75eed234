"""A process that is stopped or stuck is noticed, and none of the others waits for it."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer
from scraped_metrics import Scraped

from re4 import RetrievalClient
from re4.common.errors import ServerError
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import CommandFailed, Heartbeat, PortOpened, StartWorker, from_line
from re4.serving.processes.report_stream import ReportStream
from re4.serving.processes.worker_handle import WorkerProcess

METRICS = ("--metrics-address", "127.0.0.1:0")
START = StartWorker(
    number=1, host="127.0.0.1", port=1, settings="", path=None, files={}, folder="", hidden={}
)


def killed(running: RunningServer, worker: int, *, after: int) -> None:
    running.wait_for(rf"worker 1 \(pid {worker}\) sent no heartbeat for 2 seconds", after=after)
    running.wait_for(rf"worker 1 \(pid {worker}\) ended with signal SIGKILL; starting another", after=after)
    running.wait_for("worker 1: serving", after=after)


def test_a_stopped_worker_is_replaced(bundles: Path) -> None:
    with RunningServer(bundles, "--worker-timeout-s", "2", *METRICS) as running:
        url = running.wait_for(r"metrics on (http://\S+)").group(1)
        (worker,) = running.workers()
        seen = running.num_lines
        os.kill(worker, signal.SIGSTOP)
        killed(running, worker, after=seen)
        with RetrievalClient(running.address) as client:
            assert client.retrieve(["item-1-é"], 5).item_ids
        assert Scraped(url).value("re4_worker_unresponsive_total") == 1
        assert Scraped(url).value("re4_worker_restarts_total") == 1


def test_a_worker_whose_batch_never_ends_is_replaced(bundles: Path, tmp_path: Path) -> None:
    """Its event loop may go on, as where a page of a dead network file system is awaited in a search."""
    stuck = tmp_path / "stuck"
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, sys\nif 're4.serving.processes.worker' in sys.orig_argv:\n"
        "    from re4.serving.retrieval.pipeline import Pipeline\n    run = Pipeline.run\n"
        f"    stuck = pathlib.Path({str(stuck)!r})\n"
        "    def run_or_wait(self, queries):\n        if stuck.exists():\n            stuck.open()\n"
        "        return run(self, queries)\n    Pipeline.run = run_or_wait\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    with (
        RunningServer(bundles, "--worker-timeout-s", "2", env=env) as running,
        RetrievalClient(running.address) as client,
    ):
        client.retrieve(["item-1-é"], 5)
        (worker,) = running.workers()
        seen = running.num_lines
        os.mkfifo(stuck)
        with pytest.raises(ServerError):
            client.retrieve(["item-1-é"], 5)
        stuck.unlink()
        killed(running, worker, after=seen)


def test_workers_answer_while_the_supervisor_is_stopped(bundles: Path) -> None:
    """Every call makes a sample; they fill the pipe several times."""
    options = ("--recall-sample", "1", "--worker-timeout-s", "1", *METRICS)
    with RunningServer(bundles, *options) as running:
        url = running.wait_for(r"metrics on (http://\S+)").group(1)
        with RetrievalClient(running.address) as client:
            length = len(client.retrieve(["item-1-é"], 5).item_ids)
            running.signal(signal.SIGSTOP)
            try:
                for _ in range(1_500):
                    assert len(client.retrieve(["item-1-é"], 5).item_ids) == length
            finally:
                running.signal(signal.SIGCONT)
        while not Scraped(url).value("re4_online_recall_samples_total"):
            pass
        assert Scraped(url).value("re4_online_recall_dropped_samples_total") > 0
        assert Scraped(url).value("re4_worker_unreadable_reports_total") == 0
        assert Scraped(url).value("re4_worker_unresponsive_total") == 0


def test_a_worker_that_sends_heartbeats_is_not_unresponsive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake worker sends three, when the test has seen an interval without one, and then no more."""
    worker = tmp_path / "worker"
    opened, beat = '{"PortOpened":{}}', '{"Heartbeat":{}}'
    worker.write_text(
        f"#!/bin/sh\nread start\necho '{opened}'\n"
        f"for number in 1 2 3; do read command; echo '{beat}'; done\nread command\n"
    )
    worker.chmod(0o755)
    monkeypatch.setattr("re4.serving.processes.worker_handle.sys.executable", str(worker))
    intervals: list[int] = []

    async def main() -> None:
        process = await WorkerProcess.start(START, {}, end_within_s=60)
        reports = process.reports()

        async def interval(_: float) -> None:
            intervals.append(len(intervals))
            if len(intervals) in (2, 4, 6):  # after each silent one
                process.send(START)
                assert isinstance(await anext(reports), Heartbeat)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("re4.serving.processes.worker_handle.asyncio.sleep", interval)
            await process.wait_until_unresponsive(interval_s=1, num_intervals=2)
        await process.stop(60)

    asyncio.run(main())
    assert len(intervals) == 8


def test_no_report_waits_for_its_reader_and_only_samples_are_dropped() -> None:
    sample = RecallSample(path="x" * 1000, interests="", rows=[], excluded=[])
    dropped: list[Any] = []
    reading, writing = os.pipe()

    async def main() -> None:
        stream = await ReportStream.open(os.fdopen(writing, "wb"))
        stream.on_dropped_sample = lambda: dropped.append(1)
        for _ in range(100):
            stream.send(sample)
        stream.send(CommandFailed(failure="x"))
        stream.send(Heartbeat())
        stream.send(PortOpened())
        closing = asyncio.create_task(stream.close())
        with os.fdopen(reading, "rb") as reader:
            lines = await asyncio.to_thread(reader.readlines)
        await closing
        reports = [from_line(line) for line in lines]
        assert reports[-2:] == [CommandFailed(failure="x"), PortOpened()]
        assert len(reports) - 2 + len(dropped) == 100
        assert set(map(type, reports[:-2])) == {RecallSample}

    asyncio.run(main())
    assert dropped
