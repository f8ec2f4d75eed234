"""Attributes of items: the regression against its definition, the sums, and their gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from re4.training.config import TrainConfig
from re4.training.data.batches import Batch
from re4.training.model import attributes as attributes_module
from re4.training.model.attribute_values import AttributeValues
from re4.training.model.attributes import (
    MAX_EVENTS,
    PENALTY,
    PENALTY_AMONG_EQUALS,
    AttributeEffects,
    AttributeMatrix,
    fit_effects,
)
from re4.training.model.model import MultiInterestModel
from re4.training.samplers.sampler import Negatives

DIM, NUM_ITEMS = 8, 60


@given(seed=st.integers(0, 1000), num_values=st.integers(0, 40), are_alike=st.booleans())
@settings(max_examples=20, deadline=None)
def test_effects_solve_the_normal_equations(seed: int, num_values: int, are_alike: bool) -> None:
    rng = np.random.default_rng(seed)
    is_of_NV = rng.random((NUM_ITEMS, num_values)) < 0.2
    vectors = rng.standard_normal((NUM_ITEMS, DIM)).astype(np.float32) + 1
    events = rng.integers(0, 2 * MAX_EVENTS, NUM_ITEMS)
    owners, values = np.nonzero(is_of_NV)
    matrix = AttributeMatrix(owners, 1 + values, NUM_ITEMS, 1 + num_values)
    found = fit_effects(torch.from_numpy(vectors), None if are_alike else events, matrix).numpy()
    inputs = np.concatenate([np.ones((NUM_ITEMS, 1)), is_of_NV], axis=1)
    precision = np.ones((NUM_ITEMS, 1)) if are_alike else np.clip(events, 1, MAX_EVENTS)[:, None]
    penalty = np.diag([0.0] + [PENALTY_AMONG_EQUALS if are_alike else PENALTY] * num_values)
    expected = np.linalg.solve(inputs.T @ (precision * inputs) + penalty, inputs.T @ (precision * vectors))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (found[1:][~is_of_NV.any(axis=0)] == 0).all()


def test_rows_are_those_of_all_items_whatever_their_order_and_number_of_values() -> None:
    rng = np.random.default_rng(0)
    owners, values = np.nonzero(rng.random((NUM_ITEMS, 9)) < 0.2)
    matrix = AttributeMatrix(owners, 1 + values, NUM_ITEMS, 10)
    weights = torch.randn(10, DIM)
    rows = torch.from_numpy(rng.permutation(NUM_ITEMS)[:25])
    assert torch.equal(matrix.rows(weights, rows), matrix.items(weights)[rows])
    assert matrix.rows(weights, rows[:0]).shape == (0, DIM)


@pytest.fixture
def model() -> MultiInterestModel:
    """A model with attributes: a third of the items has none."""
    rng = np.random.default_rng(1)
    owners, values = np.nonzero(rng.random((NUM_ITEMS, 5)) < 0.2)
    attributes = AttributeEffects(AttributeValues(owners, 1 + values, 6), np.full(NUM_ITEMS, 9), DIM)
    config = TrainConfig(model="re4", embedding_dim=DIM, attention_dim=6, num_interests=2, construct_dim=4)
    torch.manual_seed(0)
    made = MultiInterestModel(config.resolve(NUM_ITEMS), NUM_ITEMS, attributes=attributes)
    made.set_item_vectors(torch.randn(NUM_ITEMS, DIM))
    return made


def batch() -> Batch:
    """Four histories."""
    rng = np.random.default_rng(2)
    return Batch(
        rows_BL=torch.from_numpy(rng.integers(0, NUM_ITEMS, (4, 5))),
        lengths_B=torch.tensor([5, 4, 4, 2]),
        targets_B=torch.from_numpy(rng.integers(0, NUM_ITEMS, 4)),
    )


def test_a_run_has_whole_vectors_and_none_of_the_effects(model: MultiInterestModel) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(NUM_ITEMS, DIM)
    model.set_item_vectors(vectors)
    assert model.attributes is not None
    assert model.attributes.weights_WD.abs().max() > 0.01
    assert (model.item_table_ND - vectors).abs().max() > 0.01, "the table has own parts"
    weights = model.run_weights()
    torch.testing.assert_close(weights["item_embedding.weight"], vectors)
    plain = MultiInterestModel(model.config, NUM_ITEMS)
    plain.load_state_dict(weights)
    given_batch = batch()
    torch.testing.assert_close(
        plain.interests(given_batch.rows_BL, given_batch.lengths_B).interests_BKD,
        model.interests(given_batch.rows_BL, given_batch.lengths_B).interests_BKD,
    )


@pytest.mark.parametrize("is_drawn", [False, True])
def test_effects_get_the_gradient_of_all_items_that_have_them(
    model: MultiInterestModel, is_drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attributes_module, "OWN_DROPOUT", 0.0)
    rows = torch.arange(0, NUM_ITEMS, 2) if is_drawn else None
    losses = model.losses(batch(), Negatives(rows_M=rows, correction=None), torch.Generator().manual_seed(0))
    losses.total.backward()
    touched, attributes = losses.touched, model.attributes
    gradient_ND = torch.zeros(NUM_ITEMS, DIM)
    gradient_ND[slice(None) if touched.rows_R is None else touched.rows_R] = touched.gradient_RD
    assert attributes is not None
    assert attributes.weights_WD.grad is not None
    torch.testing.assert_close(attributes.weights_WD.grad, attributes.matrix.weights(gradient_ND))


def test_own_parts_that_are_left_out_have_no_gradient_and_belong_to_items_with_a_value(
    model: MultiInterestModel,
) -> None:
    losses = model.losses(batch(), Negatives(rows_M=None, correction=None), torch.Generator().manual_seed(0))
    losses.total.backward()
    assert model.attributes is not None
    has_value_N = model.attributes.matrix.has_values(None)
    is_left_out_N = (losses.touched.gradient_RD == 0).all(dim=1)
    assert 0.1 < float(is_left_out_N[has_value_N].float().mean()) < 0.5, "about three of ten"
    assert not is_left_out_N[~has_value_N].any()


@pytest.mark.parametrize("scores", ["inner", "cosine"])
def test_the_first_gradients_are_bounded_from_a_random_start(scores: str) -> None:
    rng = np.random.default_rng(1)
    owners, values = np.nonzero(rng.random((NUM_ITEMS, 5)) < 0.2)
    attributes = AttributeEffects(AttributeValues(owners, 1 + values, 6), np.full(NUM_ITEMS, 9), DIM)
    settings = {"model": "re4", "embedding_dim": DIM, "attention_dim": 6, "num_interests": 2}
    config = TrainConfig(construct_dim=4, scores=scores, initial_vectors="random", **settings)
    made = MultiInterestModel(config.resolve(NUM_ITEMS), NUM_ITEMS, attributes=attributes)
    losses = made.losses(batch(), Negatives(rows_M=None, correction=None), torch.Generator().manual_seed(0))
    losses.total.backward()
    assert attributes.weights_WD.grad is not None
    assert attributes.weights_WD.grad.abs().max() < 10
