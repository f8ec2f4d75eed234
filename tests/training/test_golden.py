"""Agreement with the authors' implementation, by reference cases computed with it.

Every `.npz` in the folder named by RE4_GOLDEN_DIR (default: `golden/` beside this file) is one case:
inputs, every weight, and what the authors' code gave. Its `_right` matrices multiply from the right, its
row 0 of the item table is padding. The authors' flows look at the interests before the tanh head, and
their contrast and construct losses have reductions of their own; both are applied here, and are not what
the equations say.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from re4.training.config import TrainConfig
from re4.training.encoders.re4 import Re4Encoder
from re4.training.losses.accidental_hits import find_accidental_hits
from re4.training.losses.flows.reattend import reattend_sum
from re4.training.losses.flows.reconstruct import Reconstruct, reconstruct_sum
from re4.training.losses.flows.recontrast import positives, similarities
from re4.training.losses.sampled_softmax import sampled_softmax_sum, select_interest

FOLDER = Path(os.environ.get("RE4_GOLDEN_DIR", Path(__file__).parent / "golden"))
FILES = sorted(FOLDER.glob("*.npz"))
ROUNDING = {"rtol": 2e-5, "atol": 2e-6}


def test_there_is_a_reference_case():
    assert FILES, f"no .npz in {FOLDER}: set RE4_GOLDEN_DIR to a folder that holds reference cases"


class Golden:
    """One reference case, loaded into this project's modules."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as arrays:
            self.data = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays}
        data = self.data
        num_interests, width = data["w_interest"].shape
        length, construct_dim = data["w_position"].shape
        dim = data["item_embedding"].shape[1]
        self.encoder = Re4Encoder(
            TrainConfig(
                num_interests=num_interests,
                embedding_dim=dim,
                attention_dim=width,
                max_history_length=length,
                position=False,
                head=True,
            )
        )
        self.encoder.load_state_dict(
            {
                "W1.weight": data["W1"],
                "w.weight": data["w_interest"],
                "W2.weight": data["W2_right"].T,
                "head.weight": data["head_weight"],
                "head.bias": data["head_bias"],
            }
        )
        self.decoder = Reconstruct(embedding_dim=dim, max_history_length=length, construct_dim=construct_dim)
        self.decoder.load_state_dict(
            {
                "W4.weight": data["W4_weight"],
                "W4.bias": data["W4_bias"],
                "W3.weight": data["W3"],
                "v.weight": data["w_position"],
                "W5.weight": data["W5_right"].T,
            }
        )
        self.lengths = data["history_length"]
        self.history = data["item_embedding"][data["history_newest_first"]]
        with torch.no_grad():
            self.log_attention = self.encoder.log_attention(self.history, self.lengths)
            self.served, self.attention = self.encoder(self.history, self.lengths)
            head, self.encoder.head = self.encoder.head, None
            self.interests = self.encoder.interests(self.history, self.log_attention.exp())
            self.encoder.head = head

    @property
    def valid(self):
        return torch.arange(self.history.shape[1])[None, :] < self.lengths[:, None]


@pytest.fixture(params=FILES, ids=lambda path: path.stem, scope="module")
def golden(request):
    return Golden(request.param)


def test_attention(golden):
    np.testing.assert_allclose(golden.attention, golden.data["attention"], **ROUNDING)


def test_interests_before_the_head(golden):
    np.testing.assert_allclose(golden.interests, golden.data["interests"], **ROUNDING)


def test_head_output(golden):
    np.testing.assert_allclose(golden.served, golden.data["head_output"], **ROUNDING)


def test_reconstruction(golden):
    with torch.no_grad():
        rebuilt = golden.decoder(golden.interests, golden.lengths, golden.history.shape[1])
    valid = golden.valid[:, None, :, None].expand_as(rebuilt)
    np.testing.assert_allclose(rebuilt[valid], golden.data["reconstruction"][valid], **ROUNDING)


def test_reattend(golden):
    loss = reattend_sum(
        interests_BKD=golden.interests,
        history_vectors_BLD=golden.history,
        log_attention_BKL=golden.log_attention,
        lengths_B=golden.lengths,
    )
    mean = loss / golden.attention.shape[:2].numel()
    assert float(mean) == pytest.approx(float(golden.data["loss_attend"]), rel=2e-5)


def test_recontrast(golden):
    """Theirs: the denominator holds every valid history item, the neighbour row above is what is outside."""
    batch, num_interests, length = golden.attention.shape
    above = (torch.arange(batch) - 1) % batch
    to_history, to_interests, to_outside = similarities(
        interests_BKD=golden.interests,
        history_vectors_BLD=golden.history,
        other_B=above,
        temperature=0.02,
    )
    denominator = torch.cat(
        [
            to_history.masked_fill(~golden.valid[:, None], -torch.inf),
            to_interests.masked_fill(torch.eye(num_interests, dtype=torch.bool), -torch.inf),
            to_outside.masked_fill(~golden.valid[above][:, None], -torch.inf),
        ],
        dim=2,
    ).logsumexp(dim=2, keepdim=True)
    mine = positives(golden.attention, golden.lengths)
    loss = ((denominator - to_history) * mine).sum() / (batch * num_interests * length)
    assert float(loss) == pytest.approx(float(golden.data["loss_contrast"]), rel=2e-5)


def test_reconstruct(golden):
    """Theirs: squared distances of the positives, meaned over every entry, padding and all."""
    mine = positives(golden.attention, golden.lengths)
    with torch.no_grad():
        loss = reconstruct_sum(
            decoder=golden.decoder.decoder(),
            interests_BKD=golden.interests,
            history_vectors_BLD=golden.history,
            positives_BKL=mine,
            lengths_B=golden.lengths,
        )
    theirs = loss / (mine.numel() * golden.history.shape[2])
    assert float(theirs) == pytest.approx(float(golden.data["loss_construct"]), rel=2e-5)


def test_recommend(golden):
    items, targets = golden.data["item_embedding"], golden.data["target_item"]
    chosen = select_interest(golden.served, items[targets])
    assert chosen.tolist() == golden.data["selected_interest"].tolist()
    negatives = golden.data["negative_items"]
    loss = sampled_softmax_sum(
        interest_BD=golden.served[range(len(chosen)), chosen],
        target_vectors_BD=items[targets],
        negative_vectors_MD=items[negatives],
        hits=find_accidental_hits(targets, negatives),
    )
    assert float(loss / len(targets)) == pytest.approx(float(golden.data["loss_recommend"]), rel=2e-5)
