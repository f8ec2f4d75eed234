"""Recall of live answers, measured by a real server off the hot path."""

from pathlib import Path

import pytest
from running_server import RunningServer
from scraped_metrics import Scraped
from small_bundles import SmallVersion

from re4 import RetrievalClient


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
