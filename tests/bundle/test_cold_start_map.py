"""The map from attributes to vectors, and the fold-in of users, against their definitions."""

from pathlib import Path

import numpy as np
import pytest

from re4.bundle.attributes.reader import Attributes
from re4.bundle.attributes.writer import write_attributes
from re4.bundle.cold_start import PRIOR_USERS, ColdStart, first_weights, fold_in, num_weights
from re4.bundle.layout import COLD_START, IS_COLD
from re4.bundle.manifest import AttributeInfo
from re4.common.errors import BundleDamagedError

COLUMNS = {
    "colour": ["red", None, "blue", "red"],
    IS_COLD: [False, False, True, True],
    "tags": [["b", "a", "b"], [], None, ["c"]],
}
DIM = 3


@pytest.fixture
def version(tmp_path: Path) -> tuple[Attributes, tuple[AttributeInfo, ...], ColdStart]:
    infos = write_attributes(tmp_path, COLUMNS, 4)
    weights_WD = np.random.default_rng(0).standard_normal((num_weights(infos), DIM)).astype(np.float32)
    written = ColdStart(weights_WD=weights_WD, typical_norm=1.5, firsts=first_weights(infos))
    written.write(tmp_path / COLD_START)
    read = ColdStart.read(tmp_path / COLD_START, infos, DIM)
    np.testing.assert_array_equal(read.weights_WD, weights_WD)
    assert (read.typical_norm, read.firsts) == (1.5, written.firsts)
    return Attributes.open(tmp_path, infos, 4), infos, read


def test_a_vector_is_the_mean_and_the_effects_of_the_values(
    version: tuple[Attributes, tuple[AttributeInfo, ...], ColdStart],
) -> None:
    attributes, infos, cold_start = version
    # Values in ascending order: blue, red; a, b, c. `is_cold` describes no item.
    assert num_weights(infos) == 6
    assert first_weights(infos) == {"colour": 1, "tags": 3}
    mean, blue, red, a, b, c = cold_start.weights_WD
    expected = np.array([mean + red + a + b, mean, mean + blue, mean + red + c])
    found = cold_start.vectors_of_rows(attributes, np.arange(4))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        cold_start.vectors_of_rows(attributes, np.array([3, 3, 0])), expected[[3, 3, 0]], rtol=1e-5
    )
    items = [
        {"colour": ["red"], "tags": ["b", "a", "b"]},
        {},
        {"colour": ["blue", "green"], "unknown": ["x"], IS_COLD: ["true"]},
        {"tags": ["c"], "colour": ["red"]},
    ]
    np.testing.assert_allclose(cold_start.vectors_of_values(attributes, items), expected, rtol=1e-5)
    assert cold_start.vectors_of_values(attributes, []).shape == (0, DIM)


def test_a_map_of_other_attributes_is_refused(
    version: tuple[Attributes, tuple[AttributeInfo, ...], ColdStart], tmp_path: Path
) -> None:
    _, infos, cold_start = version
    with pytest.raises(BundleDamagedError, match="the attributes need"):
        ColdStart.read(tmp_path / COLD_START, infos[:1], DIM)
    with pytest.raises(BundleDamagedError, match="the attributes need"):
        ColdStart.read(tmp_path / COLD_START, infos, DIM + 1)
    cold_start.weights_WD.flags.writeable = True
    cold_start.weights_WD[1, 1] = np.nan
    cold_start.write(tmp_path / COLD_START)
    with pytest.raises(BundleDamagedError, match="not finite"):
        ColdStart.read(tmp_path / COLD_START, infos, DIM)


def test_without_attributes_every_vector_is_the_mean(tmp_path: Path) -> None:
    mean = np.ones((1, DIM), np.float32)
    ColdStart(weights_WD=mean, typical_norm=1.0, firsts={}).write(tmp_path / COLD_START)
    found = ColdStart.read(tmp_path / COLD_START, (), DIM)
    assert found.vectors_of_values(Attributes([]), [{"colour": ["red"]}]).tolist() == mean.tolist()
    assert found.vectors_of_rows(Attributes([]), np.arange(2)).tolist() == [*mean.tolist()] * 2


def test_users_pull_a_vector_to_their_interests() -> None:
    rng = np.random.default_rng(1)
    attribute_vectors, interests = rng.standard_normal((3, DIM)), rng.standard_normal((3, 4, DIM))
    num_users = np.array([0, 2, 4])
    sums = np.array([each[:num].sum(axis=0) for each, num in zip(interests, num_users, strict=True)])
    found = fold_in(attribute_vectors, sums, num_users, typical_norm=2.5)
    expected = []
    for vector, total, num in zip(attribute_vectors, sums, num_users, strict=True):
        mean = total / num if num else total
        at_norm = 2.5 * mean / np.linalg.norm(mean) if num else mean
        expected.append((num * at_norm + PRIOR_USERS * vector) / (num + PRIOR_USERS))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float32


def test_interests_that_cancel_out_change_nothing() -> None:
    found = fold_in(np.ones((1, DIM)), np.zeros((1, DIM)), np.array([7]), typical_norm=1.0)
    np.testing.assert_allclose(found, np.ones((1, DIM)))
