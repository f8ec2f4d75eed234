"""The mixture loss and its gradients, against PyTorch's own."""

import math

import pytest
import torch

from re4.training.losses.accidental_hits import find_accidental_hits
from re4.training.losses.mixture import mixture_sum


def by_autograd(interests, target_vectors, vectors, targets, evenness, corrections):
    of_target, of_negatives = corrections
    target_scores = torch.einsum("bkd,bd->bk", interests, target_vectors) - of_target[:, None]
    is_hit = targets[:, None] == torch.arange(len(vectors))
    scores = (interests @ vectors.T - of_negatives).masked_fill(is_hit[:, None], -torch.inf)
    log_sums = torch.logaddexp(scores.logsumexp(dim=2), target_scores)
    mixed = (target_scores - log_sums).logsumexp(dim=1) - math.log(interests.shape[1])
    return (evenness * log_sums.var(dim=1, correction=0) - mixed).sum()


@pytest.mark.parametrize(("num_interests", "evenness"), [(1, 0.0), (4, 0.0), (4, 0.3)])
def test_the_loss_and_its_gradients(monkeypatch, num_interests, evenness):
    monkeypatch.setattr("re4.training.losses.mixture._BLOCK_SCORES", 4000)  # several blocks
    torch.manual_seed(0)
    interests = torch.randn(20, num_interests, 8, requires_grad=True)
    target_vectors = torch.randn(20, 8, requires_grad=True)
    vectors = torch.randn(300, 8, requires_grad=True)
    targets = torch.randint(0, 300, (20,))
    corrections = torch.randn(20), torch.randn(300)
    found = mixture_sum(
        interests_BKD=interests,
        target_vectors_BD=target_vectors,
        negative_vectors_MD=vectors,
        hits=find_accidental_hits(targets, torch.arange(300)),
        evenness=evenness,
        target_correction_B=corrections[0],
        negative_correction_M=corrections[1],
    )
    expected = by_autograd(interests, target_vectors, vectors, targets, evenness, corrections)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    inputs = (interests, target_vectors, vectors)
    for mine, other in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_of_two_equal_interests_each_learns_half():
    """So no interest is without a gradient, whatever the others score."""
    torch.manual_seed(0)
    one = torch.randn(3, 1, 4)
    interests = one.expand(-1, 2, -1).clone().requires_grad_()
    vectors, targets = torch.randn(9, 4), torch.tensor([1, 5, 8])
    loss = mixture_sum(
        interests_BKD=interests,
        target_vectors_BD=vectors[targets],
        negative_vectors_MD=vectors,
        hits=find_accidental_hits(targets, torch.arange(9)),
    )
    (gradient,) = torch.autograd.grad(loss, interests)
    torch.testing.assert_close(gradient[:, 0], gradient[:, 1])
    assert (gradient.norm(dim=2) > 0.1).all()
