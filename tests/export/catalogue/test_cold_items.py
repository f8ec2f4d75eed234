"""The map from attributes to vectors: the regression against its definition, the scale, and their use."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_samples import FakeRun, publish_run

from re4.bundle.attributes.reader import Attributes
from re4.bundle.attributes.writer import write_attributes
from re4.bundle.cold_start import ColdStart
from re4.bundle.layout import VECTORS
from re4.exporting import assemble
from re4.exporting.catalogue import cold_start as cold
from re4.exporting.catalogue.cold_start import (
    FittedColdStart,
    fit_cold_start,
    scale_for_share,
    write_cold_vectors,
)
from re4.exporting.sources.version_inputs import VersionInputs

DIM = 8


@given(seed=st.integers(0, 1000), share=st.floats(0.02, 0.6), num_interests=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_the_scale_gives_the_share_of_places(seed: int, share: float, num_interests: int) -> None:
    rng = np.random.default_rng(seed)
    interests = rng.standard_normal((40, num_interests, DIM)).astype(np.float32)
    others = rng.standard_normal((200, DIM)).astype(np.float32)
    mean, deviations = others.mean(axis=0), (0.2 * rng.standard_normal((80, DIM))).astype(np.float32)
    num_places = 10
    other_scores = (interests @ others.T).max(axis=1)
    best = -np.sort(-other_scores, axis=1)[:, :num_places]
    found = scale_for_share(interests, best, mean, deviations, share=share, max_scale=100.0)
    scores = (interests @ (mean + found.scale * deviations).T).max(axis=1)
    lists = np.argsort(-np.concatenate([other_scores, scores], axis=1), axis=1)[:, :num_places]
    assert (lists >= len(others)).mean() == pytest.approx(found.share, abs=0.01)
    assert found.share == pytest.approx(share, abs=0.02)
    bounded = scale_for_share(interests, best, mean, deviations, share=share, max_scale=found.scale / 2)
    assert 0 < bounded.scale <= found.scale / 2


def test_a_mean_in_every_list_is_no_reason_for_a_scale_of_zero() -> None:
    rng = np.random.default_rng(0)
    mean = np.full(DIM, 1.0, np.float32)
    interests = (mean + 0.5 * rng.standard_normal((40, 1, DIM))).astype(np.float32)
    scores = interests[:, 0] @ rng.standard_normal((200, DIM)).astype(np.float32).T
    others = -np.sort(-scores, axis=1)[:, :10]
    deviations = (0.2 * rng.standard_normal((80, DIM))).astype(np.float32)
    found = scale_for_share(interests, others, mean, deviations, share=0.1, max_scale=1.0)
    assert found.scale > 0


class Catalogue:
    """Items in groups that an attribute names; users of one group each; the last items are cold."""

    def __init__(self, folder: Path, num_trained: int = 2000, num_cold: int = 400) -> None:
        rng = np.random.default_rng(3)
        num_items = num_trained + num_cold
        centres = 2 * rng.standard_normal((20, DIM))
        self.groups = rng.integers(20, size=num_items)
        self.true = (centres[self.groups] + rng.standard_normal((num_items, DIM))).astype(np.float32)
        self.vectors = self.true.copy()
        self.vectors[num_trained:] = 0
        self.cold_rows = np.arange(num_trained, num_items)
        values = [f"g{group}" for group in self.groups]
        if num_cold:
            values[-1] = "unknown"
        self.infos = write_attributes(folder, {"group": values, "is_cold": [False] * num_items}, num_items)
        self.attributes = Attributes.open(folder, self.infos, num_items)
        users = centres[rng.integers(20, size=300)] + rng.standard_normal((300, DIM))
        self.interests = users[:, None].astype(np.float32)

    def fit(self, share: float | None = None) -> FittedColdStart:
        trained = np.arange(len(self.vectors) - len(self.cold_rows))
        return fit_cold_start(
            self.vectors,
            self.cold_rows,
            trained,
            np.full(len(trained), 5),
            self.attributes,
            self.infos,
            self.interests,
            share=share,
            num_places=100,
        )

    def share(self, vectors: np.ndarray, rows: np.ndarray) -> float:
        """Share of the places that some items get."""
        scores = (self.interests @ vectors.T).max(axis=1)
        return float(np.isin(np.argsort(-scores, axis=1)[:, :100], rows).mean())


@pytest.mark.parametrize("share", [None, 0.0, 0.05, 0.15])
def test_cold_items_get_the_share_and_lie_in_their_groups(share: float | None, tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    fitted = catalogue.fit(share)
    np.save(tmp_path / VECTORS, catalogue.vectors)
    num_at_mean = write_cold_vectors(
        tmp_path / VECTORS, catalogue.cold_rows, fitted.cold_start, catalogue.attributes
    )
    written = np.load(tmp_path / VECTORS)
    np.testing.assert_array_equal(written[:2000], catalogue.vectors[:2000])
    assert num_at_mean == (400 if share == 0 else 1)
    np.testing.assert_allclose(written[-1], fitted.cold_start.weights_WD[0], rtol=1e-5)
    wanted = cold.MAX_SHARE if share is None else share
    assert catalogue.share(written, catalogue.cold_rows) == pytest.approx(wanted, abs=0.01)
    if wanted:
        deviations = written[2000:-1] - fitted.cold_start.weights_WD[0]
        true = catalogue.true[2000:-1] - fitted.cold_start.weights_WD[0]
        cosines = (deviations * true).sum(axis=1)
        cosines /= np.linalg.norm(deviations, axis=1) * np.linalg.norm(true, axis=1)
        assert np.median(cosines) > 0.8
    norms = np.linalg.norm(catalogue.vectors[:2000], axis=1)
    assert fitted.cold_start.typical_norm == pytest.approx(np.median(norms))


@pytest.mark.parametrize("names", ["", "kind"])
def test_items_that_were_trained_with_attributes_count_alike(
    names: str, fake_run: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []

    def fitting(*given: Any, **options: Any) -> FittedColdStart:
        events.append(given[3])
        return fit_cold_start(*given, **options)

    monkeypatch.setattr(assemble, "fit_cold_start", fitting)
    fake_run.config = replace(fake_run.config, attributes=names)
    publish_run(fake_run, tmp_path, index="flat")
    assert [each is None for each in events] == [bool(names)]


@pytest.mark.parametrize("num_cold", [0, 3])
def test_trained_items_stand_in_for_few_cold_ones(num_cold: int, tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path, num_cold=num_cold)
    fitted = catalogue.fit()
    stands_in = np.arange(2000) % 10 == 5
    assert fitted.share == pytest.approx(0.1, abs=0.01)
    vectors = catalogue.vectors[:2000].copy()
    vectors[stands_in] = fitted.cold_start.vectors_of_rows(catalogue.attributes, np.flatnonzero(stands_in))
    # The map is that of all trained items, the scale that of a map without the items that stand in.
    assert catalogue.share(vectors, np.flatnonzero(stands_in)) == pytest.approx(0.1, abs=0.03)
    few = catalogue.fit(share=0.02)
    assert few.scale < fitted.scale


@pytest.mark.parametrize("num_items", [1, 7, 60])
def test_a_tiny_catalogue_without_attributes_starts_at_the_mean(num_items: int, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((num_items, DIM)).astype(np.float32)
    fitted = fit_cold_start(
        vectors,
        np.empty(0, np.int64),
        np.arange(num_items),
        np.ones(num_items, np.int64),
        Attributes([]),
        (),
        vectors[:, None],
        share=None,
        num_places=100,
    )
    np.testing.assert_allclose(fitted.cold_start.weights_WD, [vectors.mean(axis=0)], rtol=1e-3, atol=1e-5)


def test_cold_vectors_are_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue(tmp_path, num_cold=50)
    weights = np.random.default_rng(1).standard_normal((22, DIM)).astype(np.float32)
    weights[-1] = 0
    made = ColdStart(weights_WD=weights, typical_norm=1.0, firsts={"group": 1})
    expected = made.vectors_of_rows(catalogue.attributes, catalogue.cold_rows)
    for num_rows in (7, 1000):
        monkeypatch.setattr(cold, "_CHUNK_ROWS", num_rows)
        np.save(tmp_path / VECTORS, catalogue.vectors)
        assert write_cold_vectors(tmp_path / VECTORS, catalogue.cold_rows, made, catalogue.attributes) == 1
        np.testing.assert_array_equal(np.load(tmp_path / VECTORS)[catalogue.cold_rows], expected)


@pytest.mark.parametrize("cold", [[], [0], [4, 5], [0, 1, 3], [1, 2, 4]])
def test_trained_items_are_numbered_in_the_order_of_all_rows(cold: list[int]) -> None:
    inputs = SimpleNamespace(cold_rows=np.array(cold, np.int64))
    found = VersionInputs.trained_rows(inputs, np.arange(6 - len(cold)))  # type: ignore[arg-type]
    assert found.tolist() == sorted({*range(6)} - {*cold})
