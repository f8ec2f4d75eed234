"""The encoders beside Re4's, and the options of the training loss, against slow references."""

import math

import numpy as np
import pytest
import reference
import torch

from re4.common.errors import UsageError
from re4.training.config import TrainConfig
from re4.training.encoders import build_encoder
from re4.training.evaluation.protocol import evaluate, rank
from re4.training.losses.accidental_hits import find_accidental_hits
from re4.training.losses.routing_regularization import routing_regularization_sum
from re4.training.losses.sampled_softmax import (
    binary_cross_entropy_sum,
    blend_interests,
    sampled_softmax_sum,
    select_interest,
)
from re4.training.model.model import MultiInterestModel
from re4.training.presets import PRESETS, SMALL_CATALOGUE
from re4.training.run.run import Run
from re4.training.samplers import build_sampler
from re4.training.trainer.loop import train

LENGTHS = [6, 1, 2, 3, 5]
SMALL = {"embedding_dim": 5, "max_history_length": 6, "attention_dim": 7}


def make(model, **options):
    torch.manual_seed(4)
    encoder = build_encoder(TrainConfig(model=model, **{**SMALL, **options}).resolve(30)).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.6)
    return encoder


def histories():
    random = np.random.default_rng(1)
    return torch.from_numpy(random.normal(size=(len(LENGTHS), 6, 5))), torch.tensor(LENGTHS)


@pytest.mark.parametrize("num_interests", [1, 2, 4])
def test_mind_against_the_reference(num_interests):
    encoder = make("mind", num_interests=num_interests)
    vectors, lengths = histories()
    encoded = encoder.encode(vectors, lengths)
    S, logits = encoder.S.weight.detach().numpy(), encoder.routing.numpy()
    for b, n in enumerate(LENGTHS):
        z, w = reference.mind(vectors[b, :n].numpy(), S, logits, num_interests)
        active = len(z)
        assert encoded.active_BK[b].tolist() == [k < active for k in range(num_interests)]
        found = encoded.interests_BKD[b].detach().numpy()
        np.testing.assert_allclose(found[:active], z, rtol=1e-7, atol=1e-9)
        shares = encoded.attention_BKL[b].detach().numpy()
        np.testing.assert_allclose(shares[:active, :n], w / w.sum(axis=1, keepdims=True), rtol=1e-7)
        assert (found[active:] == found[0]).all(), "what a user does not have repeats the first"
        assert (shares[active:] == 0).all()
        assert (shares[:, n:] == 0).all()


def test_mean_pool_is_the_mean():
    vectors, lengths = histories()
    interests, attention = make("mean-pool")(vectors, lengths)
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(interests[b, 0], vectors[b, :n].mean(dim=0), rtol=1e-12)
        np.testing.assert_allclose(attention[b, 0, :n], 1 / n, rtol=1e-12)
        assert (attention[b, 0, n:] == 0).all()


def test_most_popular_gives_everyone_the_items_by_their_counts(planted, tmp_path):
    result = train(
        planted, TrainConfig(model="most-popular", embedding_dim=4), tmp_path / "run", device="cpu"
    )
    assert result.num_epochs == result.best_epoch == 0
    model = Run.open(tmp_path / "run").load_model()
    top = rank(model, planted.test, exclude_history=False, title="").top_UM
    counts = planted.item_counts()
    best = np.sort(counts)[::-1][: top.shape[1]]
    assert all((counts[row] == best).all() for row in top)


def test_what_a_model_fixes_cannot_be_chosen():
    with pytest.raises(UsageError, match=r"--num-interests is 3; with --model mean-pool it is always 1"):
        TrainConfig(model="mean-pool", num_interests=3).resolve(100)
    with pytest.raises(UsageError, match=r"--contrast-weight is 0.1; with --model mind"):
        TrainConfig(model="mind", contrast_weight=0.1).resolve(100)
    assert TrainConfig(model="mean-pool").resolve(100).num_interests == 1


def test_the_learning_rate_is_the_model_s_own_by_catalogue_unless_one_is_given():
    def rates(num_items):
        return {model: TrainConfig(model=model).resolve(num_items).learning_rate for model in PRESETS}

    large = rates(SMALL_CATALOGUE + 1)
    assert large["re4"] == large["mind"] == large["mean-pool"] == 0.008
    assert large["comirec-sa"] == 0.002
    assert rates(SMALL_CATALOGUE) == large | {"re4": 0.002}
    assert TrainConfig(model="mind", learning_rate=0.002).resolve(100).learning_rate == 0.002


@pytest.mark.parametrize("model", [name for name, preset in PRESETS.items() if "scores" not in preset.fixed])
def test_scores_online_are_the_scores_of_training(model):
    """With cosine scores and a temperature, the inner product of what is exported is the cosine over it."""
    plain, scaled = make(model), make(model, scores="cosine", temperature=0.2)
    scaled.load_state_dict(plain.state_dict())
    vectors, lengths = histories()
    item = torch.nn.functional.normalize(torch.randn(5, dtype=torch.float64), dim=0)
    cosine = torch.nn.functional.cosine_similarity(plain(vectors, lengths)[0], item, dim=2)
    torch.testing.assert_close(scaled(vectors, lengths)[0] @ item, cosine / 0.2)


def test_cosine_scores_are_of_items_of_length_one():
    torch.manual_seed(0)
    model = MultiInterestModel(TrainConfig(scores="cosine", **SMALL).resolve(30), 30)
    assert model.item_vectors_ND().norm(dim=1).numpy() == pytest.approx(np.ones(30), abs=1e-6)
    assert model.item_embedding.weight.norm(dim=1).std() > 0.01


def test_soft_choice_becomes_hard_as_it_sharpens():
    interests, target = torch.randn(4, 3, 5), torch.randn(4, 5)
    best = torch.einsum("bkd,bd->bk", interests, target).argmax(dim=1)
    sharp = blend_interests(interests, target, sharpness=1e4)
    torch.testing.assert_close(sharp, interests[range(4), best])
    flat = blend_interests(interests, target, sharpness=0.0)
    torch.testing.assert_close(flat, interests.mean(dim=1))
    only_two = torch.tensor([[True, True, False]] * 4)
    masked = blend_interests(interests, target, sharpness=0.0, active_BK=only_two)
    torch.testing.assert_close(masked, interests[:, :2].mean(dim=1))


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_hard_negatives_against_the_reference(beta):
    random = torch.Generator().manual_seed(2)
    items = torch.randn(9, 4, generator=random, dtype=torch.float64)
    interest = torch.randn(1, 4, generator=random, dtype=torch.float64)
    negatives = torch.tensor([0, 3, 5, 6])
    loss = sampled_softmax_sum(
        interest_BD=interest,
        target_vectors_BD=items[8:],
        negative_vectors_MD=items[negatives],
        hits=find_accidental_hits(torch.tensor([8]), negatives),
        hardness=beta,
    )
    scores = (items @ interest[0]).numpy()
    expected = reference.hard_negatives(scores[8], scores[negatives.numpy()], beta)
    assert float(loss) == pytest.approx(expected, rel=1e-10)


def test_binary_cross_entropy_is_the_mean_over_negatives_without_the_target():
    random = torch.Generator().manual_seed(3)
    items = torch.randn(6, 4, generator=random, dtype=torch.float64)
    interests = torch.randn(2, 4, generator=random, dtype=torch.float64)
    targets = torch.tensor([5, 0])
    loss = binary_cross_entropy_sum(
        interest_BD=interests,
        target_vectors_BD=items[targets],
        negative_vectors_MD=items,
        hits=find_accidental_hits(targets, torch.arange(6)),
    )
    expected = 0.0
    for interest, target in zip(interests, targets.tolist(), strict=True):
        scores = (items @ interest).tolist()
        others = [score for item, score in enumerate(scores) if item != target]
        expected += math.log1p(math.exp(-scores[target]))
        expected += sum(math.log1p(math.exp(score)) for score in others) / len(others)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_served_scores_are_the_best_over_all_interests():
    """The loss is then the softmax of what serving ranks by."""
    random = torch.Generator().manual_seed(3)
    items = torch.randn(12, 4, generator=random, dtype=torch.float64)
    interests = torch.randn(5, 3, 4, generator=random, dtype=torch.float64)
    targets = torch.tensor([11, 0, 4, 4, 7])
    chosen = interests[range(5), select_interest(interests, items[targets])]
    loss = sampled_softmax_sum(
        interest_BD=chosen,
        target_vectors_BD=items[targets],
        negative_vectors_MD=items,
        hits=find_accidental_hits(targets, torch.arange(12)),
        rivals_BKD=interests,
    )
    served_BN = (interests @ items.T).amax(dim=1)
    expected = torch.nn.functional.cross_entropy(served_BN, targets, reduction="sum")
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)


def test_with_one_interest_served_and_chosen_scores_are_the_same(planted, tmp_path):
    small = {"embedding_dim": 8, "attention_dim": 8, "num_interests": 1, "num_epochs": 1}
    results = [
        train(planted, TrainConfig(**small, negative_scores=scores), tmp_path / scores, device="cpu")
        for scores in ("chosen", "served")
    ]
    assert results[0].valid == results[1].valid


def test_routing_regularisation_against_the_reference():
    random = np.random.default_rng(0)
    attentions = [random.dirichlet(np.ones(n), size=3) for n in LENGTHS]
    padded = np.zeros((len(LENGTHS), 3, 6))
    for b, a in enumerate(attentions):
        padded[b, :, : a.shape[1]] = a
    loss = routing_regularization_sum(torch.from_numpy(padded), torch.tensor(LENGTHS))
    assert float(loss / len(LENGTHS)) == pytest.approx(reference.routing(attentions), rel=1e-12)
    even = torch.full((1, 2, 4), 0.25)
    assert float(routing_regularization_sum(even, torch.tensor([4]))) == 0


@pytest.mark.parametrize("name", ["in-batch", "mixed"])
def test_corrections_are_the_log_of_the_expected_counts(name):
    """Over many batches of targets drawn by popularity, items come up as often as the correction says."""
    counts = torch.tensor([400, 200, 100, 50, 50])
    generator = torch.Generator().manual_seed(0)
    sampler = build_sampler(name, 20, counts)
    seen, num_batches = torch.zeros(5), 2000
    for _ in range(num_batches):
        targets = torch.multinomial(counts / counts.sum(), 64, replacement=True, generator=generator)
        negatives = sampler.draw(generator, targets)
        seen += torch.bincount(negatives.rows_M, minlength=5)
    expected = negatives.correction(torch.arange(5)).exp()
    np.testing.assert_allclose(seen / num_batches, expected, rtol=0.03)


def test_mind_trains_and_its_metrics_count_only_the_interests_that_are_there(planted, tmp_path):
    config = TrainConfig(model="mind", embedding_dim=16, num_interests=4, num_epochs=2, learning_rate=0.01)
    train(planted, config, tmp_path / "run", device="cpu")
    model = Run.open(tmp_path / "run").load_model()
    result = evaluate(model, planted.test, exclude_history=True)
    assert result.recall_50 > 50 / planted.num_items
    assert -1 <= result.interest_cosine < 1 - 1e-4
    assert math.isfinite(result.ndcg_20)
