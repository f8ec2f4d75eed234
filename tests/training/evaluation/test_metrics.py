"""Recall, HitRate and NDCG by hand, and the protocol around them against a slow reading of it."""

import json
import math

import numpy as np
import pytest
import torch

from re4.training.config import TrainConfig
from re4.training.encoders.encoder import Encoded
from re4.training.evaluation.metrics import rank_metrics
from re4.training.evaluation.protocol import Evaluation, evaluate, history_and_targets
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
    apart = {"effective": [], "overlap": [], "of_one": [], "recall_of_one": [], "recall_50": []}
    hits = np.zeros(model.config.K)
    for user in range(held_out.num_users):
        with torch.no_grad():
            encoded = model.interests(
                torch.from_numpy(rows[user : user + 1]), torch.from_numpy(lengths[user : user + 1])
            )
        z = encoded.interests_BKD[0].numpy()
        each = items @ z.T
        history, targets = history_and_targets(held_out, user)
        if exclude_history:
            each[history] = -np.inf
        scores = each.max(axis=1)
        ranked = np.argsort(-scores, kind="stable")[:50]
        seen |= set(ranked.tolist())
        found = [row in set(targets.tolist()) for row in ranked[:20]]
        num_targets = len(set(targets.tolist()))
        values["recall"].append(sum(found) / num_targets)
        values["hit_rate"].append(float(any(found)))
        gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(found) if hit)
        values["ndcg"].append(gain / sum(1 / math.log2(place + 2) for place in range(min(20, num_targets))))
        own = [np.argsort(-each[:, k], kind="stable")[:50].tolist() for k in range(len(z))]
        finder = each[ranked].argmax(axis=1).tolist()
        shares = [finder.count(k) / len(finder) for k in range(len(z))]
        apart["effective"].append(math.exp(-sum(share * math.log(share) for share in shares if share)))
        apart["of_one"].append(max(shares) >= 0.9)
        depth = len(items) // 10
        apart["overlap"] += [
            len(set(own[a][:depth]) & set(own[b][:depth])) / depth for a in range(len(z)) for b in range(a)
        ]
        wanted = set(targets.tolist())
        for row, k in zip(ranked.tolist(), finder, strict=True):
            hits[k] += row in wanted
        apart["recall_50"].append(len(wanted & set(ranked.tolist())) / num_targets)
        most_used = shares.index(max(shares))
        apart["recall_of_one"].append(len(wanted & set(own[most_used])) / num_targets)
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        cosines += [unit[a] @ unit[b] for a in range(len(z)) for b in range(len(z)) if a != b]
    means = {name: np.mean(value) for name, value in values.items()}
    return {
        **means,
        "coverage": len(seen) / len(items),
        "cosine": np.mean(cosines),
        "interests": {name: np.mean(value) for name, value in apart.items()},
        "hit_shares": hits / hits.sum(),
    }


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
    apart, found = expected["interests"], result.interests
    assert found.effective_interests == pytest.approx(apart["effective"])
    assert found.interest_overlap == pytest.approx(apart["overlap"])
    assert found.one_interest_lists == pytest.approx(apart["of_one"])
    assert found.one_interest_recall == pytest.approx(apart["recall_of_one"] / apart["recall_50"])
    assert found.hit_shares == pytest.approx(expected["hit_shares"])
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json()))) == result


def with_interests(model, z_KD):
    """The model whose interests are these for everybody."""
    model.interests = lambda rows_BL, lengths_B: Encoded(
        interests_BKD=z_KD.expand(len(rows_BL), -1, -1), attention_BKL=torch.ones(len(rows_BL), len(z_KD), 1)
    )
    return model


def test_interests_that_are_one_are_reported_and_distinct_ones_are_not(planted):
    torch.manual_seed(0)
    config = TrainConfig(embedding_dim=8, attention_dim=8, num_interests=4)
    model = MultiInterestModel(config.resolve(planted.num_items), planted.num_items)
    one = torch.randn(8)
    same = evaluate(with_interests(model, one.repeat(4, 1)), planted.test, exclude_history=False)
    assert same.interests.interest_overlap == same.interests.one_interest_recall == 1
    assert same.interests.effective_interests == pytest.approx(1), "of equal scores the first interest counts"
    assert "--num-interests 1 finds as much for a quarter of the searches" in same.collapse
    apart = evaluate(with_interests(model, torch.randn(4, 8)), planted.test, exclude_history=False)
    assert apart.interests.effective_interests > 2
    assert apart.collapse == ""


def test_a_decoy_does_not_count_as_an_interest(planted):
    """A long interest makes the list; short ones elsewhere have a low cosine and find nothing."""
    torch.manual_seed(0)
    config = TrainConfig(embedding_dim=8, attention_dim=8, num_interests=4)
    model = MultiInterestModel(config.resolve(planted.num_items), planted.num_items)
    decoys = torch.randn(4, 8)
    decoys[1:] *= 1e-3
    result = evaluate(with_interests(model, decoys), planted.test, exclude_history=False)
    assert result.interest_cosine < 0.5
    assert result.interests.effective_interests == pytest.approx(1, abs=0.2)
    assert result.interests.one_interest_recall == pytest.approx(1, abs=0.05)
