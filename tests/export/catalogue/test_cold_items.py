"""Starting vectors for new items, against their definition; and their use."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from re4.exporting.catalogue import attributes
from re4.exporting.catalogue import cold_start as cold
from re4.exporting.catalogue.cold_start import SHRINKAGE, start_cold_items
from re4.exporting.catalogue.items import columns_of
from re4.exporting.sources.version_inputs import VersionInputs
from re4.training.data.tables import row_store

TRAINED = pl.DataFrame(
    {
        "item_id": [1, 2, 3, 4, 5],
        "colour": ["red", "red", "blue", None, "blue"],
        "tags": [["a", "b"], ["a"], [], None, ["b", "b"]],
        "size": [1, 2, 1, 1, 3],
        "price": [0.1, 0.2, 0.3, 0.4, 0.5],
    }
)
COLD = pl.DataFrame(
    {
        "item_id": [6, 7, 8, 9],
        "colour": ["red", "green", None, ""],
        "tags": [["a", "b", "new"], ["new"], None, []],
        "size": [1, 9, None, 9],
        "price": [0.1, 0.1, 0.1, 0.1],
    },
    schema=TRAINED.schema,
)
VECTORS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def starting_vectors(
    vectors: np.ndarray, trained: pl.DataFrame, cold: pl.DataFrame, folder: Path, **options: float
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of cold items, and the number of columns used for each."""
    vectors_MD = np.concatenate([vectors, np.full((len(cold), vectors.shape[1]), np.nan, np.float32)])
    columns = columns_of(pl.concat([trained, cold]).lazy())
    num_columns = start_cold_items(vectors_MD, len(trained), columns, folder, **options)
    np.testing.assert_array_equal(vectors_MD[: len(trained)], vectors)
    return vectors_MD[len(trained) :], num_columns


def effect(rows: list[int]) -> np.ndarray:
    """The definition: the mean of those who share it, less the mean of all, shrunk."""
    return len(rows) / (len(rows) + SHRINKAGE) * (VECTORS[rows].mean(axis=0) - VECTORS.mean(axis=0))


def test_the_definition(tmp_path: Path) -> None:
    found, num_columns = starting_vectors(VECTORS, TRAINED, COLD, tmp_path)
    of_columns = [effect([0, 1]), (effect([0, 1]) + effect([0, 4])) / 2, effect([0, 2, 3])]
    np.testing.assert_allclose(found[0], VECTORS.mean(axis=0) + np.mean(of_columns, axis=0), rtol=1e-5)
    assert num_columns.tolist() == [3, 0, 0, 0]
    np.testing.assert_allclose(found[1:], np.tile(VECTORS.mean(axis=0), (3, 1)), rtol=1e-5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_cold", [0, 3])
def test_without_attributes_they_start_at_the_mean(num_cold: int, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": list(range(num_cold))}, schema={"item_id": pl.Int64})
    found, _ = starting_vectors(VECTORS, TRAINED.select("item_id"), items, tmp_path)
    assert found.shape == (num_cold, 4)
    np.testing.assert_allclose(found, np.tile(VECTORS.mean(axis=0), (num_cold, 1)), rtol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_chunks_change_nothing(num_rows: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, _ = starting_vectors(VECTORS, TRAINED, COLD, tmp_path)
    monkeypatch.setattr(cold, "_CHUNK_ROWS", num_rows)
    monkeypatch.setattr(row_store, "CHUNK_ROWS", num_rows + 1)
    monkeypatch.setattr(attributes, "_MIN_SEEN_AGAIN", 1)
    found, _ = starting_vectors(VECTORS, TRAINED, COLD, tmp_path)
    np.testing.assert_allclose(found, whole, rtol=1e-5)


def test_shrinkage_goes_from_the_mean_of_those_who_share_to_the_mean_of_all(tmp_path: Path) -> None:
    columns = ["item_id", "colour"]
    trained, cold = TRAINED.select(columns), COLD.select(columns)
    none, _ = starting_vectors(VECTORS, trained, cold, tmp_path, shrinkage=0)
    np.testing.assert_allclose(none[0], VECTORS[:2].mean(axis=0), rtol=1e-5)
    much, _ = starting_vectors(VECTORS, trained, cold, tmp_path, shrinkage=1e9)
    np.testing.assert_allclose(much[0], VECTORS.mean(axis=0), rtol=1e-5)


def test_they_lie_near_the_items_of_their_kind(tmp_path: Path) -> None:
    """Items in groups that an attribute names: each new one is nearest to its own group's centre."""
    rng = np.random.default_rng(1)
    centres = 3 * rng.standard_normal((10, 16))
    groups = rng.integers(10, size=500)
    vectors = (centres[groups] + rng.standard_normal((500, 16))).astype(np.float32)
    trained = pl.DataFrame({"item_id": range(500), "group": [f"g{group}" for group in groups]})
    cold = pl.DataFrame({"item_id": range(500, 510), "group": [f"g{group}" for group in range(10)]})
    found, _ = starting_vectors(vectors, trained, cold, tmp_path)
    distances = np.linalg.norm(found[:, None] - centres[None], axis=2)
    assert distances.argmin(axis=1).tolist() == list(range(10))


@pytest.mark.parametrize("cold", [[], [0], [4, 5], [0, 1, 3], [1, 2, 4]])
def test_trained_items_are_numbered_in_the_order_of_all_rows(cold: list[int]) -> None:
    inputs = SimpleNamespace(cold_rows=np.array(cold, np.int64))
    found = VersionInputs.trained_rows(inputs, np.arange(6 - len(cold)))  # type: ignore[arg-type]
    assert found.tolist() == sorted({*range(6)} - {*cold})
