"""EASE and item-item cosine as trained models: their low-rank scores are those of the full matrices."""

import pytest
import torch
from user_sequences import sequences

import re4.training.trainer.linear_models as linear_models
from re4.common.errors import TrainingError, UsageError
from re4.training.config import TrainConfig
from re4.training.evaluation.baselines import ease, item_cosine, rank_baseline
from re4.training.evaluation.protocol import rank, summarise
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run
from re4.training.trainer.loop import train


class SmallData:
    """The part of a data set that a linear model is fitted to."""

    train = sequences([0, 1, 1, 2], [1, 2], [2, 3, 0], [1], [3, 4, 2], [4, 0])
    num_items = 5


def fitted(model, **options):
    config = TrainConfig(model=model, embedding_dim=9, **options).resolve(SmallData.num_items)
    made = MultiInterestModel(config, SmallData.num_items)
    linear_models.fit_linear_model(made, SmallData)
    return made


@pytest.mark.parametrize("model", ["ease", "item-item"])
def test_with_as_many_dimensions_as_items_scores_are_those_of_the_full_matrix(model):
    made = fitted(model, recency_decay=1.0, ease_penalty=3.0)
    baseline = ease(SmallData.train, 5, penalty=3.0) if model == "ease" else item_cosine(SmallData.train, 5)
    histories, lengths = torch.tensor([[4, 1, 0], [2, 0, 0]]), torch.tensor([2, 1])
    encoded = made.interests(histories, lengths)
    scores = (encoded.interests_BKD @ made.item_vectors_ND().T)[:, 0]
    chosen = torch.tensor([[0.0, 1, 0, 0, 1], [0, 0, 1, 0, 0]])
    torch.testing.assert_close(scores, baseline(chosen), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.attention_BKL.sum(dim=2), torch.ones(2, 1))
    assert (encoded.attention_BKL[1, 0, 1:] == 0).all(), "padding"


def test_newer_events_count_more():
    made = fitted("item-item", recency_decay=0.5)
    both, newer, older = (
        made.interests(torch.tensor([rows]), torch.tensor([len(rows)])).interests_BKD
        for rows in ([1, 3], [1], [3])
    )
    torch.testing.assert_close(both, newer + 0.5 * older)


@pytest.mark.parametrize("model", ["ease", "item-item"])
def test_a_low_rank_loses_little(planted, tmp_path, model):
    config = TrainConfig(model=model, embedding_dim=32, recency_decay=1.0, ease_penalty=20.0)
    result = train(planted, config, tmp_path / "run", device="cpu")
    assert (result.num_epochs, result.best_epoch) == (0, 0)
    low = rank(Run.open(tmp_path / "run").load_model(), planted.test, exclude_history=True, title="")
    full = ease(planted.train, 120, penalty=20.0) if model == "ease" else item_cosine(planted.train, 120)
    whole = rank_baseline(full, planted.test, 120, exclude_history=True)
    recalls = [summarise(ranking, planted.test, 120).recall_50 for ranking in (low, whole)]
    assert recalls[0] > 0.95 * recalls[1] > 0.5


def test_refusals(planted, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--num-epochs is 3; with --model ease it is always 0"):
        TrainConfig(model="ease", num_epochs=3).resolve(100)
    with pytest.raises(UsageError, match="--model re4 has no fitted vectors"):
        TrainConfig(initial_vectors="fitted").resolve(100)
    config = TrainConfig(model="ease", embedding_dim=8)
    train(planted, config, tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match="cannot go on from a run"):
        train(planted, config, tmp_path / "next", previous=Run.open(tmp_path / "run"), device="cpu")
    monkeypatch.setattr(linear_models, "MAX_EASE_ITEMS", 100)
    with pytest.raises(TrainingError, match="120 by 120 items; it is made for up to 100"):
        train(planted, config, tmp_path / "large", device="cpu")
