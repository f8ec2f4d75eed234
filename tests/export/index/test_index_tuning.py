"""Tuning keeps its promise: the recall of the merged list, by the plainest count, on new requests."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from plain_search import plain_search

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.common.errors import ExportError
from re4.exporting.index import tuning
from re4.exporting.index.build import build_index
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.index.families import FLAT
from re4.exporting.index.index_names import RECIPES
from re4.exporting.index.tuning import Measurement, Queries, num_queries_for, pareto, tune
from re4.exporting.settings import RecallTarget

NUM_ITEMS, DIM, NUM_QUERIES, NUM_CANDIDATES = 4000, 16, 60, 25
TARGET = RecallTarget(recall=0.9, num_candidates=NUM_CANDIDATES)


@pytest.fixture(scope="module")
def vectors(mapped_items: Callable[[int, int], np.ndarray]) -> np.ndarray:
    return mapped_items(NUM_ITEMS, DIM)


@pytest.fixture(scope="module")
def interests() -> np.ndarray:
    return VectorSpace(num_items=NUM_ITEMS, embedding_dim=DIM).interests(NUM_QUERIES, 3)


def plain_recall(built: BuiltIndex, settings: dict, interests: np.ndarray, vectors: np.ndarray) -> float:
    """Sets of rows, one request at a time."""
    shares = []
    num_found = min(int(np.ceil(NUM_CANDIDATES * settings.get("k_factor", 1))), NUM_ITEMS)
    for interests_KD in interests:
        parameters = None if "shared_nprobe" in settings else built.family.parameters(settings)
        rough: dict[int, float] = {}
        for row, score in plain_search(built.index, interests_KD, num_found, settings, parameters):
            rough[row] = max(score, rough.get(row, -np.inf))
        size = int(np.ceil(NUM_CANDIDATES * settings.get("pool_factor", len(rough))))
        pool = np.array(sorted(rough, key=lambda row: -rough[row])[:size])
        true = (vectors @ interests_KD.T).max(axis=1)
        found = pool[np.argsort(-true[pool])][:NUM_CANDIDATES].tolist()
        shares.append(len(set(found) & set(np.argsort(-true)[:NUM_CANDIDATES].tolist())) / NUM_CANDIDATES)
    return float(np.mean(shares))


@pytest.mark.parametrize("name", RECIPES)
def test_the_target_is_reached_on_requests_that_had_no_part(
    name: str, vectors: np.ndarray, interests: np.ndarray
) -> None:
    built = build_index(RECIPES[name](NUM_ITEMS, DIM), vectors)
    info = tune(built, vectors, interests, TARGET, num_bytes=NUM_ITEMS * 100, reason="a test")
    held_out = interests[1::2]
    assert info.recall == pytest.approx(
        plain_recall(built, info.search_parameters, held_out, vectors), abs=0.002
    )
    assert info.recall >= TARGET.recall == info.recall_target
    assert (info.num_queries, info.num_candidates) == (len(held_out), NUM_CANDIDATES)
    assert (info.factory, info.reason) == (built.factory, "a test")
    assert (info.kind == "flat") == (info.search_parameters == {})
    assert info.kind == "flat" or {"k_factor", "pool_factor"} < set(info.search_parameters)

    frontier = info.frontier
    assert all(point.bytes_per_item == 100 for point in frontier)
    assert all(
        slower.recall > faster.recall and slower.request_us >= faster.request_us
        for faster, slower in pairwise(frontier)
    )
    for point in frontier[:: max(1, len(frontier) // 3)]:
        again = plain_recall(built, point.search_parameters, interests[::2], vectors)
        assert point.recall == pytest.approx(again, abs=0.002)


def test_without_sharing_each_interest_has_its_own_budget(vectors: np.ndarray, interests: np.ndarray) -> None:
    """For a GPU, whose indexes cannot share one."""
    built = build_index("IVF64,Flat", vectors)
    info = tune(built, vectors, interests, TARGET, num_bytes=1, shares_budget=False)
    assert set(info.search_parameters) == {"nprobe", "k_factor", "pool_factor"}


def test_a_shared_budget_reads_fewer_lists(vectors: np.ndarray, interests: np.ndarray) -> None:
    built = build_index("IVF64,Flat", vectors)
    chosen = tune(built, vectors, interests, TARGET, num_bytes=1).search_parameters
    assert chosen["shared_nprobe"] < interests.shape[1] * chosen["nprobe"]
    equal = {name: value for name, value in chosen.items() if not name.startswith(("shared", "reach"))}
    assert plain_recall(built, equal, interests[::2], vectors) >= TARGET.recall


def test_more_recall_costs_more_effort(vectors: np.ndarray, interests: np.ndarray) -> None:
    built = build_index("IVF64,Flat", vectors)
    little, much = (
        tune(
            built, vectors, interests, RecallTarget(recall=recall, num_candidates=NUM_CANDIDATES), num_bytes=1
        ).search_parameters["shared_nprobe"]
        for recall in (0.6, 0.99)
    )
    assert little < much


def test_an_error_names_the_best_recall_and_a_remedy(vectors: np.ndarray, interests: np.ndarray) -> None:
    poor = build_index("HNSW2,Flat", vectors)
    with pytest.raises(ExportError) as missed:
        tune(poor, vectors, interests, RecallTarget(recall=1.0, num_candidates=NUM_CANDIDATES), num_bytes=1)
    text = str(missed.value)
    assert "--recall 1 for 25 candidates is out of reach of HNSW2,Flat: the best is 0." in text
    assert "with ef_search" in text
    assert "HNSW64" in text
    assert "--index flat" in text


def test_a_setting_that_fails_the_other_half_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves that disagree: what choosing liked best, judging refuses."""
    recalls = {"choosing": {1: 0.97, 2: 0.98, 3: 1.0}, "judging": {1: 0.94, 2: 0.96, 3: 0.99}}
    family = FLAT.__class__(
        name="fake",
        faiss_types=frozenset(),
        is_exact=True,
        settings=lambda index, num_results: [{"nprobe": step} for step in (1, 2, 3)],
        parameters=lambda settings: None,
        advice="nothing",
    )
    halves = iter(("choosing", "judging"))

    class Scripted:
        num_candidates = 5

        def __init__(self, *_: object) -> None:
            self.recalls = recalls[next(halves)]

        def __len__(self) -> int:
            return 7

        def measure(self, built: BuiltIndex, settings: dict) -> list[Measurement]:
            step = settings["nprobe"]
            return [Measurement(settings=settings, recall=self.recalls[step], request_us=10.0 + step)]

    monkeypatch.setattr(tuning, "Queries", Scripted)
    built = BuiltIndex(index=SimpleNamespace(), factory="fake", family=family)
    target = RecallTarget(recall=0.95, num_candidates=5)
    info = tune(built, np.zeros((10, 2), np.float32), np.zeros((8, 1, 2), np.float32), target, num_bytes=1)
    assert (info.search_parameters, info.recall) == ({"nprobe": 2}, 0.96)
    recalls["judging"] = dict.fromkeys((1, 2, 3), 0.9)
    halves = iter(("choosing", "judging"))
    with pytest.raises(ExportError, match=r"the best is 0\.9000"):
        tune(built, np.zeros((10, 2), np.float32), np.zeros((8, 1, 2), np.float32), target, num_bytes=1)


def test_the_frontier_holds_the_unbeaten_settings() -> None:
    points = [
        Measurement(settings={"nprobe": n}, recall=recall, request_us=us)
        for n, (recall, us) in enumerate([(0.5, 10), (0.4, 12), (0.9, 20), (0.9, 25), (0.6, 20), (1.0, 90)])
    ]
    assert [point.settings["nprobe"] for point in pareto(points)] == [0, 2, 5]


def test_exact_answers_stay_affordable() -> None:
    assert num_queries_for(10**4, 4) == 1000
    assert num_queries_for(2 * 10**6, 4) == 500
    assert num_queries_for(10**8, 4) == 200


def test_measuring_leaves_the_number_of_threads_alone(vectors: np.ndarray, interests: np.ndarray) -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        Queries(interests[:3], vectors, 5).measure(build_index("Flat", vectors), {})
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)
