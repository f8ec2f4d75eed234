"""Logit adjustment: the loss sees the popularity, served scores do not."""

import pytest
import torch

from re4.common.errors import UsageError
from re4.training.config import TrainConfig
from re4.training.data.batches import Batch
from re4.training.model.model import MultiInterestModel
from re4.training.samplers import SAMPLERS, build_sampler

COUNTS_N = torch.tensor([400, 200, 100, 50, 25, 12, 6, 3, 1, 0])
WEIGHT = 0.3
LOG_N = COUNTS_N.float().clamp_min(0.5).log()
SMALL = {"embedding_dim": 5, "attention_dim": 7, "max_history_length": 6, "construct_dim": 4}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_log_popularity_is_taken_off_the_correction(name):
    rows, targets = torch.arange(10), torch.tensor([0, 3, 3])
    plain, adjusted = (
        build_sampler(name, 5, COUNTS_N, logit_adjustment=weight).draw(
            torch.Generator().manual_seed(1), targets
        )
        for weight in (0.0, WEIGHT)
    )
    assert (plain.rows_M is None) == (adjusted.rows_M is None) == (name == "all")
    before = torch.zeros(10) if plain.correction is None else plain.correction(rows)
    torch.testing.assert_close(adjusted.correction(rows), before - WEIGHT * LOG_N)


@pytest.mark.parametrize("settings", [{"model": "re4"}, {"model": "transformer", "every_position": False}])
@pytest.mark.parametrize("loss", ["softmax", "mixture"])
def test_the_loss_is_that_of_scores_with_the_popularity_added(settings, loss):
    torch.manual_seed(0)
    config = TrainConfig(num_interests=2, negative_scores="served", loss=loss, **SMALL, **settings)
    model = MultiInterestModel(config.resolve(10), 10)
    batch = Batch(
        rows_BL=torch.randint(10, (8, 6)), lengths_B=torch.full((8,), 6), targets_B=torch.randint(10, (8,))
    )
    drawn = build_sampler("all", 5, COUNTS_N, logit_adjustment=WEIGHT).draw(
        torch.Generator(), batch.targets_B
    )
    found = float(model.losses(batch, drawn, torch.Generator()).terms["recommend"].detach())
    with torch.no_grad():
        scores_BKN = model.interests(batch.rows_BL, batch.lengths_B).interests_BKD @ model.item_table_ND.T
        if loss == "softmax":
            log_chances_BN = (scores_BKN.amax(dim=1) + WEIGHT * LOG_N).log_softmax(dim=1)
        else:
            log_chances_BN = (scores_BKN + WEIGHT * LOG_N).log_softmax(dim=2).exp().mean(dim=1).log()
        expected = -log_chances_BN[range(8), batch.targets_B].mean()
    evenness = found - float(expected)
    assert evenness == pytest.approx(0, abs=1e-5) or (loss == "mixture" and 0 < evenness < 0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "re4", "loss": "bce"}, "--logit-adjustment .* --loss bce"),
        ({"model": "ease"}, "--logit-adjustment is 0.3; with --model ease"),
    ],
)
def test_models_and_losses_without_corrected_scores_refuse_it(settings, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(logit_adjustment=WEIGHT, **settings).resolve(10)
