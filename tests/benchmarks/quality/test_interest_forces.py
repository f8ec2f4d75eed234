"""The study of forces between interests: the signs that the theory predicts."""

import pytest
import torch
from user_sequences import sequences

from re4.benchmarks.quality.interest_forces import SPLITS, gradient_figures, split_changes
from re4.training.config import TrainConfig
from re4.training.model.model import MultiInterestModel


def test_a_split_is_charged_by_served_scores_and_rewarded_by_chosen_ones():
    torch.manual_seed(0)
    interests, vectors = torch.randn(12, 6), torch.randn(80, 6) * 0.7
    targets = (interests @ vectors.T).softmax(dim=1).multinomial(1)[:, 0]
    changes = split_changes(interests, vectors, targets)
    small = SPLITS[1]
    _, chosen = changes["chosen"][small]
    _, served = changes["served"][small]
    _, mixture = changes["mixture"][small]
    assert chosen < 0 < mixture < served / 3
    # Twice the distance: the square for served scores, the fourth power for the mixture.
    ratio = small / SPLITS[0]
    assert served / changes["served"][SPLITS[0]][1] == pytest.approx(ratio**2, rel=0.2)


class _Dataset:
    train = sequences([1, 2, 3, 4], [5, 6], [7])


def test_the_gradients_of_several_interests():
    torch.manual_seed(0)
    config = TrainConfig(embedding_dim=8, max_history_length=5, num_interests=3).resolve(30)
    figures = gradient_figures(MultiInterestModel(config, 30), _Dataset())
    assert figures["chosen"][1] == figures["chosen"][3] == 0, "the others have no gradient"
    assert figures["mixture"][1] > 0
    assert f"re-contrast × {config.contrast_weight:g}" in figures
