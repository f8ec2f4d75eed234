"""Recall, HitRate and NDCG by hand, and the protocol around them against a slow reading of it."""

import math

import numpy as np
import pytest
import torch

from re4.training.config import TrainConfig
from re4.training.evaluation.metrics import rank_metrics
from re4.training.evaluation.protocol import evaluate, history_and_targets
from re4.training.model.model import MultiInterestModel


def test_by_hand():
    found = np.array([[False, True, False, True], [False, False, False, False]])
    metrics = rank_metrics(found, np.array([3, 5]), cut=3)
    assert metrics.recall_U.tolist() == [1 / 3, 0]
    assert metrics.hit_rate_U.tolist() == [1, 0]
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert metrics.ndcg_U.tolist() == pytest.approx([1 / math.log2(3) / ideal, 0])


def test_the_ideal_stops_at_the_cut():
    """More targets than places: a list full of targets is perfect in NDCG, not in recall."""
    metrics = rank_metrics(np.ones((1, 2), dtype=bool), np.array([10]), cut=2)
    assert metrics.ndcg_U.tolist() == pytest.approx([1])
    assert metrics.recall_U.tolist() == [0.2]


def slow_evaluation(model, held_out, *, exclude_history):
    """The protocol, one user at a time."""
    items = model.item_vectors_ND().numpy()
    rows, lengths = held_out.histories(model.config.max_history_length)
    values, seen, cosines = {"recall": [], "hit_rate": [], "ndcg": []}, set(), []
    for user in range(held_out.num_users):
        with torch.no_grad():
            encoded = model.interests(
                torch.from_numpy(rows[user : user + 1]), torch.from_numpy(lengths[user : user + 1])
            )
        z = encoded.interests_BKD[0].numpy()
        scores = (items @ z.T).max(axis=1)
        history, targets = history_and_targets(held_out, user)
        if exclude_history:
            scores[history] = -np.inf
        ranked = np.argsort(-scores, kind="stable")[:50]
        seen |= set(ranked.tolist())
        found = [row in set(targets.tolist()) for row in ranked[:20]]
        num_targets = len(set(targets.tolist()))
        values["recall"].append(sum(found) / num_targets)
        values["hit_rate"].append(float(any(found)))
        gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(found) if hit)
        values["ndcg"].append(gain / sum(1 / math.log2(place + 2) for place in range(min(20, num_targets))))
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        cosines += [unit[a] @ unit[b] for a in range(len(z)) for b in range(len(z)) if a != b]
    means = {name: np.mean(value) for name, value in values.items()}
    return {**means, "coverage": len(seen) / len(items), "cosine": np.mean(cosines)}


@pytest.mark.parametrize("exclude_history", [False, True])
def test_evaluation_against_a_slow_reading_of_the_protocol(planted, exclude_history):
    torch.manual_seed(0)
    config = TrainConfig(embedding_dim=8, attention_dim=8, num_interests=3, max_history_length=10)
    model = MultiInterestModel(config.resolve(planted.num_items), planted.num_items)
    result = evaluate(model, planted.test, exclude_history=exclude_history)
    expected = slow_evaluation(model, planted.test, exclude_history=exclude_history)
    assert result.recall_20 == pytest.approx(expected["recall"], abs=1e-9)
    assert result.hit_rate_20 == pytest.approx(expected["hit_rate"], abs=1e-9)
    assert result.ndcg_20 == pytest.approx(expected["ndcg"], abs=1e-9)
    assert result.coverage_50 == pytest.approx(expected["coverage"], abs=1e-9)
    assert result.interest_cosine == pytest.approx(expected["cosine"], abs=1e-5)
