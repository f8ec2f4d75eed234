"""Folding in by likelihood: vectors answer to events as a training of the softmax would have them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from re4.bundle.fold_in import FoldInModel
from re4.bundle.layout import FOLD_IN
from re4.common.errors import BundleDamagedError

DIM = 6
NUM_USERS = 400


@pytest.fixture(scope="module")
def model() -> FoldInModel:
    """Users with normal interests, and a catalogue whose partition is 1,000 for each."""
    rng = np.random.default_rng(3)
    return FoldInModel(
        interests_SD=(rng.standard_normal((NUM_USERS, DIM)) + 0.7).astype(np.float32),
        log_partition_S=np.full(NUM_USERS, np.log(1000.0 * NUM_USERS), np.float32),
        precision_DD=np.eye(DIM, dtype=np.float32),
    )


def drawn(model: FoldInModel, vector_D: NDArray[np.float64], num: int, seed: int = 0) -> NDArray[np.float64]:
    """Return the sum of the interests of users who chose an item of a vector."""
    chances_S = np.exp(model.interests_SD @ vector_D)
    chosen = np.random.default_rng(seed).choice(NUM_USERS, num, p=chances_S / chances_S.sum())
    return np.asarray(model.interests_SD[chosen].sum(axis=0, dtype=np.float64))


def test_many_events_give_the_trained_vector(model: FoldInModel) -> None:
    true_D = np.array([1.0, -0.5, 0.3, 0.0, 0.8, -0.2])
    num = 4000
    num_others = num / model.share(true_D)
    found_D = model.vector(np.zeros(DIM), drawn(model, true_D, num), num_others)
    np.testing.assert_allclose(found_D, true_D, atol=0.08)
    assert found_D.dtype == np.float32
    assert model.share(found_D) * num_others == pytest.approx(num, rel=0.02)


def test_few_events_move_a_vector_little_and_more_with_each(model: FoldInModel) -> None:
    prior_D = np.full(DIM, 0.2)
    true_D = prior_D + np.eye(DIM)[0]
    distances = []
    for num in (1, 5, 20, 100):
        num_others = (num - 1) / model.share(true_D)
        found_ED = [model.vector(prior_D, drawn(model, true_D, num, seed), num_others) for seed in range(10)]
        distances.append(float(np.linalg.norm(np.array(found_ED) - true_D, axis=1).mean()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.4 < distances[0]


def test_an_item_that_few_choose_falls_behind_its_attributes(model: FoldInModel) -> None:
    prior_D = np.full(DIM, 0.2)
    sum_D = 2 * model.interests_SD.mean(axis=0)
    seldom_D = model.vector(prior_D, sum_D, 100 / model.share(prior_D))
    often_D = model.vector(prior_D, sum_D, 0.0)
    assert model.share(seldom_D) < 0.5 * model.share(prior_D) < model.share(often_D)


@pytest.mark.parametrize("size", [1e9, 1e30, 1e300])
def test_evidence_of_any_size_gives_a_finite_vector(model: FoldInModel, size: float) -> None:
    found_D = model.vector(np.full(DIM, 0.2), np.full(DIM, size), 2.0**62)
    assert np.isfinite(found_D).all()


def test_a_strong_prior_does_not_move(model: FoldInModel) -> None:
    strong = FoldInModel(
        interests_SD=model.interests_SD,
        log_partition_S=model.log_partition_S,
        precision_DD=np.eye(DIM, dtype=np.float32) * 1e9,
    )
    prior_D = np.full(DIM, 0.2)
    np.testing.assert_allclose(strong.vector(prior_D, drawn(model, prior_D, 5), 100.0), prior_D, atol=1e-4)


def test_damage_is_found(model: FoldInModel, tmp_path: Path) -> None:
    model.write(tmp_path / FOLD_IN)
    read = FoldInModel.read(tmp_path / FOLD_IN, DIM)
    np.testing.assert_array_equal(read.interests_SD, model.interests_SD)
    np.testing.assert_array_equal(read.precision_DD, model.precision_DD)
    with pytest.raises(BundleDamagedError, match="the width is 6"):
        FoldInModel.read(tmp_path / FOLD_IN, DIM + 1)
    FoldInModel(
        interests_SD=model.interests_SD,
        log_partition_S=model.log_partition_S,
        precision_DD=-model.precision_DD,
    ).write(tmp_path / FOLD_IN)
    with pytest.raises(BundleDamagedError, match="not positive definite"):
        FoldInModel.read(tmp_path / FOLD_IN, DIM)
    FoldInModel(
        interests_SD=model.interests_SD * np.float32(np.nan),
        log_partition_S=model.log_partition_S,
        precision_DD=model.precision_DD,
    ).write(tmp_path / FOLD_IN)
    with pytest.raises(BundleDamagedError, match="not finite"):
        FoldInModel.read(tmp_path / FOLD_IN, DIM)
