"""The loss of mutual information: by loops, at its ends, and as a term of the model's losses."""

import math

import numpy as np
import pytest
import torch

from re4.training.config import TrainConfig
from re4.training.data.batches import Batch
from re4.training.losses.mutual_information import information_loss_sum
from re4.training.model.model import MultiInterestModel
from re4.training.samplers.sampler import Negatives


def by_loops(interests, vectors):
    total = 0.0
    for z_KD in interests:
        scores_KM = np.array([[float(z @ item) for item in vectors] for z in z_KD])
        chance_M = np.exp(scores_KM.max(axis=0)) / np.exp(scores_KM.max(axis=0)).sum()
        share_KM = np.exp(scores_KM) / np.exp(scores_KM).sum(axis=0)
        used_K = [sum(chance_M[m] * share_KM[k, m] for m in range(len(vectors))) for k in range(len(z_KD))]
        between = -sum(used * math.log(used) for used in used_K)
        within = -sum(
            chance_M[m] * share_KM[k, m] * math.log(share_KM[k, m])
            for k in range(len(z_KD))
            for m in range(len(vectors))
        )
        total += math.log(len(z_KD)) - (between - within)
    return total


def test_the_sum_by_loops():
    rng = np.random.default_rng(0)
    interests, vectors = rng.normal(size=(5, 3, 4)), rng.normal(size=(7, 4))
    found = information_loss_sum(torch.tensor(interests), torch.tensor(vectors))
    assert float(found) == pytest.approx(by_loops(interests, vectors))


def test_equal_interests_lose_all_and_interests_with_items_of_their_own_lose_nothing():
    rng = np.random.default_rng(0)
    equal = torch.tensor(rng.normal(size=(6, 1, 4))).repeat(1, 4, 1)
    vectors = torch.tensor(rng.normal(size=(50, 4)))
    assert float(information_loss_sum(equal, vectors)) == pytest.approx(6 * math.log(4))
    apart, items = 30 * torch.eye(4).repeat(6, 1, 1), torch.eye(4).repeat(5, 1)
    assert float(information_loss_sum(apart, items)) == pytest.approx(0, abs=1e-4)


def test_a_short_interest_elsewhere_does_not_count_as_distinct():
    """Re-contrast sees cosines alone; this loss is nearly as high as for equal interests."""
    decoys = torch.zeros(3, 4, 8)
    decoys[:, 0, 0] = 6.0
    decoys[:, 1, 1] = decoys[:, 2, 2] = decoys[:, 3, 3] = 0.01
    vectors = torch.zeros(20, 8)
    vectors[:, 0] = torch.linspace(0.5, 1, 20)
    assert float(information_loss_sum(decoys, vectors)) / 3 > 0.9 * math.log(4)


def test_inactive_interests_have_no_items():
    rng = np.random.default_rng(1)
    two, vectors = torch.tensor(rng.normal(size=(4, 2, 4))), torch.tensor(rng.normal(size=(9, 4)))
    padded = torch.cat([two, two[:, :1]], dim=1).requires_grad_()
    active = torch.tensor([[True, True, False]]).expand(4, 3)
    loss = information_loss_sum(padded, vectors, active_BK=active)
    expected = float(information_loss_sum(two, vectors)) + 4 * (math.log(3) - math.log(2))
    assert float(loss.detach()) == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, padded)
    assert gradient.isfinite().all()
    assert not gradient[:, 2].any()


def test_a_sample_stands_for_all_examples_and_items():
    torch.manual_seed(0)
    interests, vectors = torch.randn(400, 3, 4), torch.randn(5000, 4)
    every = by_loops(interests[:8].numpy(), vectors[::50].numpy()) / 8
    for number in (0, 1, 2):
        found = float(information_loss_sum(interests, vectors, number=number)) / 400
        assert found == pytest.approx(every, rel=0.3)


@pytest.mark.parametrize("model", ["re4", "mind"])
def test_it_is_a_term_of_the_losses_and_a_step_lowers_it(model):
    torch.manual_seed(0)
    small = {"embedding_dim": 5, "attention_dim": 7, "max_history_length": 6, "construct_dim": 4}
    config = TrainConfig(model=model, num_interests=3, information_weight=0.3, **small).resolve(30)
    made = MultiInterestModel(config, 30)
    batch = Batch(
        rows_BL=torch.randint(30, (8, 6)), lengths_B=torch.full((8,), 6), targets_B=torch.randint(30, (8,))
    )
    terms = []
    for _ in range(30):
        losses = made.losses(batch, Negatives(rows_M=None, correction=None), torch.Generator())
        terms.append(float(losses.terms["information"].detach()))
        made.zero_grad()
        losses.total.backward()
        with torch.no_grad():
            for parameter in made.encoder.parameters():
                if parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad
    assert 0 <= terms[0] <= math.log(3) + 1e-6
    if model == "re4":
        assert terms[-1] < terms[0]
    one = TrainConfig(model="re4", num_interests=1, information_weight=0.3, **small).resolve(30)
    losses = MultiInterestModel(one, 30).losses(
        batch, Negatives(rows_M=None, correction=None), torch.Generator()
    )
    assert "information" not in losses.terms
