"""The model of folding in is fitted where scores state how often items are chosen, and only there."""

import numpy as np
import pytest

from re4.exporting.catalogue.fold_in import fold_in_model, num_users_for

DIM = 8


def test_the_model_states_how_often_trained_items_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("re4.exporting.catalogue.fold_in._CHUNK_ITEMS", 100)
    rng = np.random.default_rng(0)
    from_attributes = 0.3 * rng.standard_normal((450, DIM)).astype(np.float32)
    vectors = from_attributes + 0.5 * rng.standard_normal((450, DIM)).astype(np.float32)
    interests = (rng.standard_normal((300, 2, DIM)) + 1).astype(np.float32)
    shares = np.exp(np.einsum("qkd,rd->qkr", interests, vectors))
    shares /= shares.sum(axis=(1, 2), keepdims=True)
    events = rng.poisson(200_000 * shares.sum(axis=1).mean(axis=0))
    found = fold_in_model(vectors, from_attributes, events, interests, num_items=450)
    assert found.model is not None
    assert found.slope == pytest.approx(1, abs=0.05)
    assert sum(found.model.share(each) for each in vectors) == pytest.approx(1, rel=1e-3)
    covariance = np.linalg.inv(found.model.precision_DD)
    np.testing.assert_allclose(np.diag(covariance), 0.25, rtol=0.4)
    # A sample of the items stands for all of them.
    of_half = fold_in_model(vectors[::2], from_attributes[::2], events[::2], interests, num_items=450)
    assert of_half.model is not None
    assert of_half.model.share(vectors[7]) == pytest.approx(found.model.share(vectors[7]), rel=0.3)
    # Scores a tenth as long state little, and popularity apart from scores is not stated at all.
    assert fold_in_model(vectors, from_attributes, events, interests / 10, num_items=450).model is None
    assert (
        fold_in_model(vectors, from_attributes, rng.permutation(events), interests, num_items=450).model
        is None
    )
    assert fold_in_model(vectors, from_attributes, 0 * events, interests, num_items=450) == (None, 0.0)
    assert fold_in_model(vectors, vectors, events, interests, num_items=450).model is None


def test_users_are_bounded() -> None:
    assert [num_users_for(num) for num in (1, 4, 5000)] == [512, 256, 1]
