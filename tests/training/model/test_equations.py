"""Every part of the model and every loss, and its gradient, against the float64 NumPy reference."""

import numpy as np
import pytest
import reference
import torch

from re4.training.config import TrainConfig
from re4.training.data.batches import Batch
from re4.training.losses.accidental_hits import find_accidental_hits
from re4.training.losses.flows.recontrast import outside_history, positives
from re4.training.losses.sampled_softmax import sampled_softmax_sum, select_interest
from re4.training.model.microbatch import num_microbatches
from re4.training.model.model import MultiInterestModel
from re4.training.samplers.sampler import Negatives

NUM_ITEMS = 30
LENGTHS = [6, 1, 4, 3, 6]
OPTIONS = [
    {"model": "re4"},
    {"model": "re4", "position": True, "head": True},
    {"model": "comirec-sa"},
    {"model": "re4", "num_interests": 1},
    {"model": "re4", "negative_scores": "served"},
    {"model": "re4", "history_weight": 0.4},
]


def make_config(**options):
    small = {"embedding_dim": 5, "attention_dim": 7, "max_history_length": 6, "construct_dim": 4}
    weights = {"contrast_weight": 0.3, "attend_weight": 0.2, "construct_weight": 0.5}
    kinds = {"negatives": "uniform", "negative_scores": "chosen", "history_weight": 0.0}
    return TrainConfig(**{"num_interests": 3, **kinds, **small, **weights, **options}).resolve(NUM_ITEMS)


def make_batch(seed=0):
    """Histories without repeats, so that a reference by sets of rows is exact; padding holds noise."""
    random = np.random.default_rng(seed)
    rows = np.stack([random.permutation(NUM_ITEMS)[:6] for _ in LENGTHS])
    return Batch(
        rows_BL=torch.from_numpy(rows),
        lengths_B=torch.tensor(LENGTHS),
        targets_B=torch.from_numpy(random.integers(0, NUM_ITEMS, len(LENGTHS))),
    )


class Case:
    """A model in float64, a batch, and the same numbers as NumPy arrays without padding."""

    def __init__(self, **options):
        torch.manual_seed(3)
        self.config = make_config(**options)
        self.model = MultiInterestModel(self.config, NUM_ITEMS).double()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.4)
        self.batch = make_batch()
        self.negatives = Negatives(rows_M=torch.tensor([1, 5, 5, 9, 20, 28, 3]), correction=None)

    def array(self, name):
        parameters = dict(self.model.named_parameters())
        return parameters[name].detach().numpy() if name in parameters else None

    def histories(self):
        items = self.array("item_embedding.weight")
        rows = self.batch.rows_BL.numpy()
        return [items[row[:n]] for row, n in zip(rows, LENGTHS, strict=True)]

    def forward(self):
        """The reference's interests and attentions, user by user."""
        head = None
        if self.config.head:
            head = (self.array("encoder.head.weight"), self.array("encoder.head.bias"))
        attentions, zs = [], []
        for history in self.histories():
            a = reference.attention(
                history,
                self.array("encoder.W1.weight"),
                self.array("encoder.w.weight"),
                self.array("encoder.position"),
            )
            attentions.append(a)
            zs.append(reference.interests(history, a, self.array("encoder.W2.weight"), head))
        return zs, attentions

    def reference_losses(self, outside):
        zs, attentions = self.forward()
        items = self.array("item_embedding.weight")
        targets = self.batch.targets_B.numpy()
        negatives = self.negatives.rows_M.numpy()
        histories = self.histories()
        decoder = ["W4.weight", "W4.bias", "W3.weight", "v.weight", "W5.weight"]
        expected = {
            "recommend": np.mean(
                [
                    reference.recommend(
                        z, t, items, negatives, served=self.config.negative_scores == "served"
                    )[0]
                    for z, t in zip(zs, targets, strict=True)
                ]
            ),
            "contrast": reference.recontrast(
                histories, zs, attentions, outside, self.config.contrast_temperature
            ),
            "attend": reference.reattend(histories, zs, attentions),
            "construct": reference.reconstruct_loss(
                histories, zs, attentions, [self.array(f"reconstruct.{name}") for name in decoder]
            ),
        }
        if self.config.history_weight:
            rows = [row[:n].numpy() for row, n in zip(self.batch.rows_BL, LENGTHS, strict=True)]
            expected["history"] = reference.own_history(zs, targets, rows, items)
        return expected

    def weighted(self, losses):
        return sum(
            value if name == "recommend" else getattr(self.config, f"{name}_weight") * value
            for name, value in losses.items()
        )

    def losses(self):
        """The model's losses, and the vectors outside each user's history that it drew."""
        losses = self.model.losses(self.batch, self.negatives, torch.Generator().manual_seed(5))
        other, usable = outside_history(
            self.batch.rows_BL, self.batch.lengths_B, torch.Generator().manual_seed(5)
        )
        items = self.array("item_embedding.weight")
        rows = self.batch.rows_BL.numpy()
        outside = [items[rows[o][u.numpy()]] for o, u in zip(other, usable, strict=True)]
        return losses, outside


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_flow(options):
    case = Case(**options)
    encoded = case.model.interests(case.batch.rows_BL, case.batch.lengths_B)
    interests, attention = encoded.interests_BKD, encoded.attention_BKL
    zs, attentions = case.forward()
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(interests[b].detach(), zs[b], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(attention[b, :, :n].detach(), attentions[b], rtol=1e-10, atol=1e-12)
        assert (attention[b, :, n:] == 0).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_loss_and_their_weighted_sum(options):
    case = Case(**options)
    losses, outside = case.losses()
    expected = case.reference_losses(outside)
    assert losses.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses.terms[name].detach()) == pytest.approx(value, rel=1e-9), name
        assert value > 0, f"{name} is 0: the case does not test it"
    assert float(losses.total.detach()) == pytest.approx(case.weighted(expected), rel=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_against_finite_differences_of_the_reference(options):
    """Every parameter, at its three largest-gradient entries and two random ones."""
    case = Case(**options)
    losses, outside_before = case.losses()
    losses.total.backward()
    gradients = {name: parameter.grad for name, parameter in case.model.named_parameters()}
    table = torch.zeros_like(case.model.item_embedding.weight)
    table[losses.touched.rows_R] = losses.touched.gradient_RD
    gradients["item_embedding.weight"] = table
    random = np.random.default_rng(1)

    def total():
        # The items outside the histories move with the table, so they are read again.
        _, outside = case.losses()
        return case.weighted(case.reference_losses(outside))

    assert len(outside_before) == len(LENGTHS)
    step = 1e-6
    for name, parameter in case.model.named_parameters():
        flat, gradient = parameter.data.view(-1), gradients[name].view(-1)
        places = {*gradient.abs().topk(min(3, len(flat))).indices.tolist(), *random.integers(0, len(flat), 2)}
        for place in places:
            before = float(flat[place])
            flat[place] = before + step
            above = total()
            flat[place] = before - step
            below = total()
            flat[place] = before
            assert float(gradient[place]) == pytest.approx(
                (above - below) / (2 * step), rel=1e-4, abs=1e-7
            ), (
                name,
                int(place),
            )


def test_padding_and_other_users_change_nothing():
    """Noise in the padding, longer padding, and other users beside one, leave its interests bit for bit."""
    case = Case(model="re4", position=True, head=True)
    encoder = case.model.encoder.float()
    vectors = torch.randn(5, 6, 5)
    lengths = torch.tensor(LENGTHS)
    clean = vectors.clone()
    for b, n in enumerate(LENGTHS):
        clean[b, n:] = 0
    interests, attention = encoder(clean, lengths)
    noisy_interests, noisy_attention = encoder(
        torch.where(clean == 0, torch.full_like(clean, 1e4), clean), lengths
    )
    assert torch.equal(interests, noisy_interests)
    assert torch.equal(attention, noisy_attention)
    for b, n in enumerate(LENGTHS):
        alone, _ = encoder(clean[b : b + 1, :n], lengths[b : b + 1])
        torch.testing.assert_close(alone[0], interests[b], rtol=1e-5, atol=1e-6)
    shuffled = torch.tensor([3, 0, 4, 2, 1])
    among_others, _ = encoder(clean[shuffled], lengths[shuffled])
    torch.testing.assert_close(among_others, interests[shuffled], rtol=1e-6, atol=1e-7)


def test_padding_and_its_rows_change_no_loss():
    case = Case(model="re4")
    losses, _ = case.losses()
    for b, n in enumerate(LENGTHS):
        case.batch.rows_BL[b, n:] = 29
    again, _ = case.losses()
    for name, value in losses.terms.items():
        assert float(again.terms[name].detach()) == pytest.approx(float(value.detach()), rel=1e-12), name


def test_contrast_negatives_are_redrawn_and_never_from_the_own_history():
    rows = torch.tensor([[0, 1, 2], [2, 3, 4], [5, 6, 0], [7, 8, 9]])
    lengths = torch.tensor([3, 3, 2, 1])
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        other, usable = outside_history(rows, lengths, generator)
        seen.add(tuple(other.tolist()))
        for b in range(4):
            assert other[b] != b
            own = set(rows[b, : lengths[b]].tolist())
            theirs = rows[other[b], : lengths[other[b]]].tolist()
            expected = [position < len(theirs) and theirs[position] not in own for position in range(3)]
            assert usable[b].tolist() == expected
    assert len(seen) == 3, "all other users must come up"


def test_a_single_user_has_nobody_to_contrast_with():
    _, usable = outside_history(torch.tensor([[1, 2]]), torch.tensor([2]), torch.Generator())
    assert not usable.any()


def test_positives_are_strictly_above_the_uniform_share():
    attention = torch.tensor([[[0.5, 0.5, 0.0], [0.6, 0.4, 0.0]], [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    expected = [[[False] * 3, [True, False, False]], [[False] * 3, [False] * 3]]
    assert positives(attention, torch.tensor([2, 1])).tolist() == expected


@pytest.mark.parametrize("flow", ["contrast", "attend", "construct"])
def test_a_flow_of_weight_zero_costs_nothing(flow):
    others = {f"{name}_weight": 0.0 for name in ("contrast", "attend", "construct") if name != flow}
    alone = Case(model="re4", **others)
    losses, _ = alone.losses()
    assert set(losses.terms) == {"recommend", flow}
    without = Case(model="re4", **{**others, f"{flow}_weight": 0.0})
    assert without.model.reconstruct is None
    assert {name.split(".")[0] for name, _ in without.model.named_parameters()} == {
        "item_embedding",
        "encoder",
    }


def recommend_by_rows(case, negatives, log_expected=None):
    """The loss of the case's batch against rows of the table, and its interests."""
    items, targets = case.model.item_embedding.weight, case.batch.targets_B
    interests = case.model.interests(case.batch.rows_BL, case.batch.lengths_B).interests_BKD
    chosen = select_interest(interests, items[targets])
    loss = sampled_softmax_sum(
        interest_BD=interests[range(len(targets)), chosen],
        target_vectors_BD=items[targets],
        negative_vectors_MD=items[negatives],
        hits=find_accidental_hits(targets, negatives),
        target_correction_B=None if log_expected is None else log_expected[targets],
        negative_correction_M=None if log_expected is None else log_expected[negatives],
    )
    return float(loss.detach()) / len(targets), interests


def reference_recommend(case, negatives, log_expected=None):
    items = case.array("item_embedding.weight")
    losses = [
        reference.recommend(z, target, items, negatives.tolist(), log_expected)[0]
        for z, target in zip(case.forward()[0], case.batch.targets_B.tolist(), strict=True)
    ]
    return np.mean(losses)


def test_logq_correction_against_the_reference():
    case = Case(model="re4")
    log_expected = torch.linspace(-3, 2, NUM_ITEMS, dtype=torch.float64)
    loss, _ = recommend_by_rows(case, case.negatives.rows_M, log_expected)
    expected = reference_recommend(case, case.negatives.rows_M, log_expected.numpy())
    assert loss == pytest.approx(expected, rel=1e-10)


def test_the_training_interest_is_the_one_that_fits_the_target_best():
    case = Case(model="re4")
    targets = case.model.item_embedding.weight[case.batch.targets_B]
    interests = case.model.interests(case.batch.rows_BL, case.batch.lengths_B).interests_BKD
    chosen = select_interest(interests, targets)
    for b, k in enumerate(chosen.tolist()):
        scores = (interests[b] @ targets[b]).detach().numpy()
        assert scores[k] == pytest.approx(scores.max(), rel=1e-12)
    assert len(set(chosen.tolist())) > 1


def test_the_whole_catalogue_is_the_exact_softmax():
    case = Case(model="re4", negatives="all")
    every = torch.arange(NUM_ITEMS)
    loss, interests = recommend_by_rows(case, every)
    assert loss == pytest.approx(reference_recommend(case, every), rel=1e-10)
    items, targets = case.model.item_embedding.weight, case.batch.targets_B
    chosen = interests[range(len(targets)), select_interest(interests, items[targets])]
    exact = torch.nn.functional.cross_entropy(chosen @ items.T, targets)
    assert loss == pytest.approx(float(exact.detach()), rel=1e-10)
    everything = Negatives(rows_M=None, correction=None)
    by_model = case.model.losses(case.batch, everything, torch.Generator()).terms["recommend"]
    assert loss == pytest.approx(float(by_model.detach()), rel=1e-10)


def test_a_target_is_never_its_own_negative():
    """Alone among negatives that are all the target, nothing is left to lose against."""
    items = torch.randn(4, 3)
    negatives = torch.tensor([2, 2, 2])
    loss = sampled_softmax_sum(
        interest_BD=torch.randn(1, 3),
        target_vectors_BD=items[2:3],
        negative_vectors_MD=items[negatives],
        hits=find_accidental_hits(torch.tensor([2]), negatives),
    )
    assert float(loss) == 0


@pytest.mark.parametrize(
    ("num_examples", "num_threads", "expected"),
    [(1024, 1, 2), (1024, 2, 4), (1024, 16, 16), (100, 4, 2), (1, 4, 1), (10_000, 2, 20)],
)
def test_every_thread_has_shards_that_are_neither_small_nor_large(
    num_examples, num_threads, expected, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    assert num_microbatches(num_examples, torch.device("cpu")) == expected
    assert num_microbatches(num_examples, torch.device("cuda")) == 1


@pytest.mark.parametrize("options", [{}, {"negative_scores": "served"}, {"hard_negatives": 0.7}], ids=str)
def test_shards_add_up_to_the_batch(options, monkeypatch):
    """On two threads and one, in three shards and in one: the same losses and gradients."""
    found = []
    before = torch.get_num_threads()
    for shards, threads in ((1, 1), (3, 1), (3, 2)):
        monkeypatch.setattr("re4.training.model.model.num_microbatches", lambda *_, num=shards: num)
        monkeypatch.setattr("re4.training.model.microbatch.outside_history", _nobody_else)
        torch.set_num_threads(threads)
        case = Case(model="re4", **options)
        losses = case.model.losses(case.batch, case.negatives, torch.Generator().manual_seed(0))
        losses.total.backward()
        gradients = [parameter.grad for parameter in case.model.parameters() if parameter.requires_grad]
        found.append([*losses.terms.values(), losses.touched.gradient_RD, *gradients])
    torch.set_num_threads(before)
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def _nobody_else(rows_BL, lengths_B, generator):
    """Whom a user is paired with depends on the shard: here with nobody."""
    return torch.arange(len(rows_BL)), torch.zeros_like(rows_BL, dtype=torch.bool)
