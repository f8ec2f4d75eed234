"""The study of merge policies, on a small model: max-score is what evaluation says, soft-quota shares."""

import numpy as np
import pytest
import torch
from planted_tastes import write_planted

from re4.benchmarks.quality.merge_policies import compare_policies
from re4.serving.retrieval.merging import POLICIES
from re4.training.config import TrainConfig
from re4.training.evaluation.protocol import evaluate
from re4.training.model.model import MultiInterestModel


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("planted") / "data")


@pytest.mark.parametrize("exclude_history", [False, True])
def test_max_score_is_the_list_of_the_evaluation(planted, exclude_history):
    torch.manual_seed(0)
    config = TrainConfig(embedding_dim=8, attention_dim=8, num_interests=3, max_history_length=10)
    model = MultiInterestModel(config.resolve(planted.num_items), planted.num_items)
    model.eval()
    num_users = planted.test.num_users
    found = compare_policies(model, planted.test, exclude_history=exclude_history, max_users=num_users)
    expected = evaluate(model, planted.test, exclude_history=exclude_history)
    assert found.keys() == POLICIES.keys()
    assert np.mean(found["max-score"].recall_U) == pytest.approx(expected.recall_50)
    assert np.mean(found["max-score"].ndcg_U) == pytest.approx(expected.ndcg_20)
    assert np.mean(found["max-score"].effective_U) == pytest.approx(expected.interests.effective_interests)
    assert np.mean(found["soft-quota"].effective_U) > np.mean(found["max-score"].effective_U)
    assert np.mean(found["equal-quota"].effective_U) > np.mean(found["soft-quota"].effective_U) - 1e-9
