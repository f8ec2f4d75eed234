"""The causal transformer: its equations, its positions, its loss, and Re4 on top of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from user_sequences import sequences

from re4.common.errors import UsageError
from re4.training.config import TrainConfig
from re4.training.data.batches import WindowBatches
from re4.training.encoders import build_encoder
from re4.training.kernels.masks import valid_mask
from re4.training.losses.mixture import EVENNESS
from re4.training.model import model as model_module
from re4.training.model.model import MultiInterestModel
from re4.training.samplers.sampler import Negatives
from re4.training.trainer.loop import resolve_and_log

LENGTHS = [6, 1, 2, 3, 5]
DIM = 5  # odd: one head


def make(model="transformer", **options):
    torch.manual_seed(4)
    small = {"embedding_dim": DIM, "max_history_length": 6, "attention_dim": 7, **options}
    encoder = build_encoder(TrainConfig(model=model, **small).resolve(30)).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.6)
    return encoder


def histories():
    random = np.random.default_rng(1)
    return torch.from_numpy(random.normal(size=(len(LENGTHS), 6, DIM))), torch.tensor(LENGTHS)


def test_blocks_against_the_reference():
    encoder = make()
    vectors, lengths = histories()
    interests, attention = encoder(vectors, lengths)
    positions = encoder.encode_positions(vectors, lengths)[:, 0].detach().numpy()
    start = 0
    for b, n in enumerate(LENGTHS):
        x = vectors[b, :n].numpy()
        for block in encoder.transformer.blocks:
            x, shares = reference.transformer_block(
                x, {name: value.detach().numpy() for name, value in block.named_parameters()}
            )
        np.testing.assert_allclose(interests[b, 0].detach(), x[0], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(positions[start : start + n], x, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(attention[b, 0, :n].detach(), shares[0], rtol=1e-9)
        assert (attention[b, 0, n:] == 0).all()
        start += n
    assert start == len(positions)


@pytest.mark.parametrize(("dim", "num_interests"), [(5, 1), (8, 1), (8, 3)])
def test_a_position_is_the_newest_event_of_the_history_that_ends_there(dim, num_interests):
    """Training at every position trains what serving computes, with two heads as with one."""
    encoder = make(embedding_dim=dim, num_interests=num_interests)
    vectors = torch.randn(1, 6, dim, dtype=torch.float64)
    positions = encoder.encode_positions(vectors, torch.tensor([6]))
    for newest in range(6):
        interests, _ = encoder(vectors[:, newest:], torch.tensor([6 - newest]))
        torch.testing.assert_close(positions[newest], interests[0])


def test_padding_changes_nothing():
    encoder = make()
    vectors, lengths = histories()
    padded = torch.where(valid_mask(lengths, 6)[:, :, None], vectors, 1e3)
    torch.testing.assert_close(encoder(padded, lengths), encoder(vectors, lengths))
    assert encoder.encode_positions(padded, lengths).isfinite().all()


def test_fresh_blocks_are_the_identity():
    config = TrainConfig(model="transformer").resolve(30)
    vectors = torch.randn(2, 3, 64)
    interests, _ = build_encoder(config)(vectors, torch.tensor([3, 1]))
    torch.testing.assert_close(interests[:, 0], vectors[:, 0])


@pytest.mark.parametrize("model", ["re4", "comirec-sa"])
def test_interests_are_made_of_the_outputs_of_the_blocks(model):
    encoder = make(model, num_blocks=2, num_interests=3)
    vectors, lengths = histories()
    outputs, _ = encoder.transformer(vectors, lengths)
    encoder.transformer, blocks = None, encoder.transformer
    torch.testing.assert_close(encoder(outputs, lengths), _with(encoder, blocks, vectors, lengths))


def _with(encoder, blocks, vectors, lengths):
    encoder.transformer = blocks
    return encoder(vectors, lengths)


def test_several_interests_are_the_output_plus_a_map_of_it():
    encoder = make(num_interests=3)
    vectors, lengths = histories()
    interests, attention = encoder(vectors, lengths)
    maps = encoder.to_interests
    encoder.to_interests = None
    output, of_output = encoder(vectors, lengths)
    for number, (weight, bias) in enumerate(zip(maps.weight.split(DIM), maps.bias.split(DIM), strict=True)):
        torch.testing.assert_close(interests[:, number], output[:, 0] + output[:, 0] @ weight.T + bias)
        torch.testing.assert_close(attention[:, number], of_output[:, 0])


def test_several_interests_are_trained_by_the_mixture():
    several, one = (TrainConfig(model="transformer", num_interests=number).resolve(30) for number in (4, 1))
    assert (several.loss, one.loss) == ("mixture", "softmax")
    assert TrainConfig(model="transformer").resolve(30) == one


def mean_loss(scores_PKN, targets_P):
    """The cross entropy of the mixture, plus the variance of the logarithms of the sums."""
    log_sums_PK = scores_PKN.logsumexp(dim=2)
    chances_PK = scores_PKN[torch.arange(len(targets_P)), :, targets_P] - log_sums_PK
    mixed_P = chances_PK.logsumexp(dim=1) - np.log(scores_PKN.shape[1])
    return (EVENNESS * log_sums_PK.var(dim=1, correction=0) - mixed_P).mean()


@pytest.mark.parametrize("num_interests", [1, 3])
def test_the_loss_at_every_position_is_the_mean_cross_entropy(monkeypatch, num_interests):
    config = TrainConfig(
        model="transformer",
        embedding_dim=8,
        max_history_length=4,
        num_interests=num_interests,
    ).resolve(30)
    torch.manual_seed(3)
    model = MultiInterestModel(config, 30)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    users = [np.random.default_rng(user).integers(0, 30, 3 + user).tolist() for user in range(9)]
    (batch,) = WindowBatches(sequences(*users), max_history_length=4, batch_size=1000).epoch([1])
    every = Negatives(rows_M=None, correction=None)
    totals, gradients = [], []
    for num_blocks in (1, 3):
        monkeypatch.setattr(model_module, "num_microbatches", lambda *_, number=num_blocks: number)
        losses = model.losses(batch, every, torch.Generator())
        model.zero_grad()
        losses.total.backward()
        totals.append(losses.total.item())
        gradients.append([parameter.grad.clone() for parameter in model.encoder.parameters()])
    interests = model.encoder.encode_positions(model.item_embedding(batch.rows_BL), batch.lengths_B)
    scores = interests @ model.item_vectors_ND().T
    model.zero_grad()
    expected = mean_loss(scores, batch.targets_B)
    expected.backward()
    for total, of_weights in zip(totals, gradients, strict=True):
        assert total == pytest.approx(expected.item(), rel=1e-5)
        for parameter, gradient in zip(model.encoder.parameters(), of_weights, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-6)


USERS = [list(range(10 * user, 10 * user + size)) for user, size in enumerate([9, 2, 1, 5, 10, 0, 3])]


def pairs(batches, seed):
    """Input and target of every position, and the windows as lists of inputs, oldest first."""
    found, windows = [], []
    for batch in batches.epoch([seed]):
        assert batch.is_every_position
        targets = iter(batch.targets_B.tolist())
        for rows, length in zip(batch.rows_BL.tolist(), batch.lengths_B.tolist(), strict=True):
            assert not any(rows[length:]), "padding is row 0"
            found += [(row, next(targets)) for row in rows[:length]]
            windows.append(rows[:length][::-1])
        assert next(targets, None) is None
    return found, windows


def test_every_event_but_the_last_is_an_input_once_and_the_next_event_its_target():
    batches = WindowBatches(sequences(*USERS), max_history_length=3, batch_size=7)
    cuts = set()
    for seed in range(20):
        found, windows = pairs(batches, seed)
        assert sorted(found) == [(row, row + 1) for user in USERS for row in user[:-1]]
        assert batches.num_examples == len(found)
        for window in windows:
            assert 1 <= len(window) <= 3
            assert window == list(range(window[0], window[0] + len(window))), "one user, in order"
        cuts.add(tuple(sorted(map(tuple, windows))))
    assert len(cuts) > 5, "windows are cut at other places in each epoch"


def test_targets_at_every_position_stay_within_the_next_n_of_the_user():
    batches = WindowBatches(
        sequences(*USERS), max_history_length=4, batch_size=5, history_dropout=0.4, next_n=3
    )
    drawn = {}
    for seed in range(200):
        for row, target in pairs(batches, seed)[0]:
            drawn.setdefault(row, []).append(target)
    for row, targets in drawn.items():
        user = next(user for user in USERS if row in user)
        possible = user[user.index(row) + 1 :][:3]
        assert set(targets) == set(possible)
        assert max(abs(targets.count(item) - len(targets) / len(possible)) for item in possible) < 50
        assert 80 < len(targets) <= 200
        assert len(user) == 2 or len(targets) < 200, "dropout takes some, but not the only one"


def test_windows_can_be_entered_in_the_middle():
    batches = WindowBatches(
        sequences(*USERS), max_history_length=3, batch_size=4, history_dropout=0.5, next_n=2
    )
    whole = [(batch.rows_BL, batch.targets_B) for batch in batches.epoch([4, 1])]
    assert len(whole) == batches.num_steps > 2
    for step in range(batches.num_steps):
        later = [(batch.rows_BL, batch.targets_B) for batch in batches.epoch([4, 1], first_step=step)]
        for one, other in zip(later, whole[step:], strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_where_users_have_many_events_the_target_is_one_of_the_next_seven():
    def next_n(*facts, **options):
        return TrainConfig(**options).resolve(*facts).next_n

    assert next_n(100, 30.0, model="transformer") == 7
    assert next_n(100, 29.9, model="transformer") == next_n(100, model="transformer") == 1
    assert next_n(100, 30.0, model="transformer", next_n=1) == 1
    assert next_n(100, 300.0, model="re4") == 1, "other models keep the very next event"


def test_the_default_is_the_transformer_where_users_have_many_events():
    assert TrainConfig().resolve(100, 30.0) == TrainConfig(model="transformer").resolve(100, 30.0)
    assert TrainConfig().resolve(100, 29.0) == TrainConfig(model="re4").resolve(100, 29.0)
    assert TrainConfig().resolve(100).model == "re4", "where the events of a user are unknown"
    with pytest.raises(UsageError, match=r"--contrast-weight .* with --model transformer.*--model re4"):
        TrainConfig(contrast_weight=0.1).resolve(100, 30.0)


def test_the_log_of_a_training_names_the_model_and_its_reason(caplog):
    caplog.set_level("INFO")
    for settings in ({}, {"model": "re4"}):
        facts = SimpleNamespace(num_items=100, events_per_user=40.0)
        resolve_and_log(TrainConfig(**settings), facts)
    assert [message for message in caplog.messages if "--model" in message] == [
        "--model auto: transformer, because users have 40 training events on average"
    ]


def test_only_the_transformer_trains_at_every_position():
    with pytest.raises(UsageError, match="--every-position is True; with --model re4 it is always False"):
        TrainConfig(every_position=True).resolve(100)
    newest = TrainConfig(model="transformer", every_position=False).resolve(100)
    assert (newest.every_position, newest.L, newest.K) == (False, 50, 1)
    assert TrainConfig().resolve(100).L == 20
