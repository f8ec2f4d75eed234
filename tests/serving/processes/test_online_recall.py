"""Recall of live answers, measured by a real server off the hot path."""

import asyncio
from pathlib import Path

import pytest
from running_server import RunningServer
from scraped_metrics import Scraped
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes import recall_monitor
from re4.serving.processes.recall_monitor import RecallMonitor


def test_a_server_measures_its_own_answers(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    name = SmallVersion(num_items=200).publish(bundles)
    options = ("--metrics-address", "127.0.0.1:0", "--recall-sample", "1", "--recall-cpu-share", "1")
    with RunningServer(bundles, *options) as running:
        url = running.wait_for(r"metrics on (http://\S+)").group(1)
        with RetrievalClient(running.address) as client:
            while not Scraped(url).value("re4_online_recall_samples_total", version=name):
                client.retrieve(["item-1-é"], 5, exclude=["item-2-é"])
        assert Scraped(url).value("re4_online_recall", version=name) == 1
        assert running.workers()  # the process that measures is none of them
    assert "Traceback" not in running.log


def test_samples_of_the_largest_models_do_not_end_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 interests of 1,024 numbers: such samples were longer than the longest line once."""
    monkeypatch.setattr("small_bundles.NUM_INTERESTS", 64)
    monkeypatch.setattr("small_bundles.EMBEDDING_DIM", 1024)
    bundles = tmp_path / "bundles"
    name = SmallVersion(num_items=100).publish(bundles)
    options = ("--metrics-address", "127.0.0.1:0", "--recall-sample", "1", "--recall-cpu-share", "1")
    with RunningServer(bundles, *options) as running:
        url = running.wait_for(r"metrics on (http://\S+)").group(1)
        with RetrievalClient(running.address) as client:
            while not Scraped(url).value("re4_online_recall_samples_total", version=name):
                client.retrieve(["item-1-é"], 5)
        assert Scraped(url).value("re4_worker_unreadable_reports_total") == 0


def test_a_process_that_is_stopped_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process stops itself, the next one answers."""
    script = tmp_path / "python"
    script.write_text(
        f"#!/bin/sh\nread sample\n[ -e {tmp_path}/was ] && echo 0.5 && exit\n"
        f"touch {tmp_path}/was\nkill -STOP $$\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(recall_monitor.sys, "executable", str(script))
    monkeypatch.setattr(recall_monitor, "_TIMEOUT_S", 0.5)
    recalls: list[float] = []

    async def main() -> None:
        monitor = RecallMonitor(1.0, lambda _, recall: recalls.append(recall))
        sample = RecallSample(path="x", interests="", rows=[], excluded=[])
        while not recalls:
            monitor.offer(sample)
            assert monitor._measuring is not None
            await monitor._measuring
            assert monitor._process is not None
            if not recalls:
                await monitor._process.wait()
        await monitor.stop()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert recalls == [0.5]
