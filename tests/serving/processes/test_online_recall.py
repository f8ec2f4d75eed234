"""Recall of live answers: right against its definition, and measured by a real server off the hot path."""

from pathlib import Path

import numpy as np
from running_server import RunningServer
from scraped_metrics import Scraped
from small_bundles import SmallVersion

from re4.serving.client.client import RetrievalClient
from re4.serving.processes.recall_process import answer_recall

NOTHING = np.empty(0, np.int64)


def test_recall_is_the_share_of_the_exact_candidates_ties_and_exclusions_counted() -> None:
    vectors_ND = np.array([[5.0], [4.0], [3.0], [3.0], [1.0]], np.float32)
    interests_KD = np.array([[1.0], [0.5]], np.float32)

    def recall(*rows: int, excluded: list[int] | None = None) -> float:
        return answer_recall(interests_KD, vectors_ND, np.array(rows), np.array(excluded or [], np.int64))

    assert recall(0, 1, 2) == recall(0, 1, 3) == 1  # 2 and 3 tie
    assert recall(0, 1, 4) == 2 / 3
    assert recall(4, 1) == 0.5
    assert recall(1, 2, excluded=[0]) == 1
    assert recall(1, 2) == 0.5


def test_it_agrees_with_a_full_sort_over_many_chunks() -> None:
    rng = np.random.default_rng(3)
    vectors_ND = rng.standard_normal((70_000, 4)).astype(np.float32)
    interests_KD = rng.standard_normal((3, 4)).astype(np.float32)
    best = np.argsort(-(vectors_ND @ interests_KD.T).max(axis=1))
    assert answer_recall(interests_KD, vectors_ND, best[:50], NOTHING) == 1
    assert answer_recall(interests_KD, vectors_ND, best[10:60], NOTHING) == 0.8
    assert answer_recall(interests_KD, vectors_ND, best[10:60], best[:10]) == 1


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
