"""Attention and scores compared, on histories small enough to do it by hand."""

import math

import pytest
import torch

from re4.benchmarks.quality.attention_agreement import agreement
from re4.common.errors import UsageError
from re4.training.encoders.encoder import Encoded

# Two history items and padding; scores ln 3 and 0, so that shares by score are 3/4 and 1/4.
HISTORY = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
LENGTHS = torch.tensor([2])
INTEREST = torch.tensor([[[math.log(3), 0.0]]])


def encoded(*shares):
    attention = torch.tensor([[[*shares, 0.0]]])
    return Encoded(interests_BKD=INTEREST, attention_BKL=attention, log_attention_BKL=attention.log())


def test_attention_that_is_the_scores_agrees():
    found = agreement(encoded(0.75, 0.25), HISTORY, LENGTHS)
    assert found.divergence == pytest.approx(0, abs=1e-6)
    assert found.same_item == 1


def test_the_divergence_is_in_nats():
    found = agreement(encoded(0.25, 0.75), HISTORY, LENGTHS)
    assert found.divergence == pytest.approx(0.75 * math.log(3) - 0.25 * math.log(3), rel=1e-5)
    assert found.same_item == 0


def test_a_history_of_one_item_has_nothing_to_disagree_about():
    both = Encoded(
        interests_BKD=INTEREST.repeat(2, 1, 1),
        attention_BKL=torch.tensor([[[0.25, 0.75, 0]], [[1.0, 0, 0]]]),
        log_attention_BKL=torch.tensor([[[0.25, 0.75, 0]], [[1.0, 0, 0]]]).log(),
    )
    found = agreement(both, HISTORY.repeat(2, 1, 1), torch.tensor([2, 1]))
    assert found == agreement(encoded(0.25, 0.75), HISTORY, LENGTHS)


def test_an_encoder_without_attention_is_refused():
    attention = torch.tensor([[[0.5, 0.5, 0]]])
    with pytest.raises(UsageError, match="comirec-sa"):
        agreement(Encoded(interests_BKD=INTEREST, attention_BKL=attention), HISTORY, LENGTHS)
