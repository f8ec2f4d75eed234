"""Two experiments of the study of unseen items, which are no options of the product.

**Attributes learned with the model.** An item's vector is a sum: vectors of its attribute values, learned,
and an own part. In each step the own part of some items is left out, so that the attributes' part can
stand alone: it is the vector of an item that training has not seen. Everything else is as in `re4 train`:
losses, negatives, averaging, the choice of the epoch.

**Likelihood of choices.** Ridge regression counts all directions and all users alike. The likelihood counts
them by the choices of users. Let a(i) be mean + sum of effects, u the interests of users, n the events of a
user, and Z the sum of exp(u·x) over the trained items with their vectors x. The map minimises

    sum over i of w(i) * (sum over u of n exp(u·a(i)) / Z - a(i) · sum over u of n exp(u·x(i)) / Z * u)

and a penalty of the distance to the effects of the ridge regression. This is a Poisson regression on the
events that the trained vectors expect; it is convex.

Legend: N items, W weights (the mean, then the values), D embedding, E values of items, S interests of users,
C items of a chunk.
"""

import copy
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from re4.bundle.fold_in import FoldInModel
from re4.exporting.catalogue.cold_start import MAX_EVENTS, fit_weights
from re4.training.config import TrainConfig
from re4.training.data.batches import TrainingBatches
from re4.training.data.dataset import Dataset
from re4.training.evaluation.protocol import evaluate
from re4.training.model.model import MultiInterestModel, TouchedRows
from re4.training.samplers import build_sampler
from re4.training.trainer.embedding_init import svd_item_vectors
from re4.training.trainer.optimiser import RowWiseAdam
from re4.training.trainer.weight_averaging import WeightAverage

DROPPED: Final = 0.3
"""Share of the items whose own part is left out of a step."""
PENALTY_EVENTS: Final = 125.0
"""Events of a value whose information is as strong as the penalty."""
_NUM_STEPS: Final = 30
_CHUNK_ITEMS: Final = 4_096


class AttributeMatrix:
    """Which weights each item has: weight 0, the mean, and those of its values."""

    def __init__(
        self, owners_E: NDArray[np.int64], weights_E: NDArray[np.int64], num_items: int, num_weights: int
    ) -> None:
        owners = torch.from_numpy(np.concatenate([np.arange(num_items), owners_E]))
        weights = torch.from_numpy(np.concatenate([np.zeros(num_items, np.int64), weights_E]))
        self._to_items = _bags(owners, weights, num_items)
        self._to_weights = _bags(weights, owners, num_weights)

    def items(self, weights_WD: Tensor) -> Tensor:
        """Return the sum of the weights of each item, [N, D]."""
        return embedding_bag(self._to_items[0], weights_WD, self._to_items[1], mode="sum")

    def gradient(self, gradient_ND: Tensor) -> Tensor:
        """Return the gradient of the weights, [W, D]."""
        return embedding_bag(self._to_weights[0], gradient_ND, self._to_weights[1], mode="sum")


def _bags(owners_E: Tensor, values_E: Tensor, num_owners: int) -> tuple[Tensor, Tensor]:
    ends = torch.bincount(owners_E, minlength=num_owners).cumsum(0)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    return values_E[torch.argsort(owners_E, stable=True)], starts


class AttributeModel(MultiInterestModel):
    """A model with vectors of attribute values beside the item vectors."""

    def __init__(self, config: TrainConfig, num_items: int, num_weights: int) -> None:
        super().__init__(config, num_items)
        self.weights_WD = nn.Parameter(torch.zeros(num_weights, config.embedding_dim))

    @classmethod
    def load(cls, path: Path, config: TrainConfig, num_items: int, num_weights: int) -> Self:
        """Load what `train_with_attributes` saved."""
        model = cls(config, num_items, num_weights)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()


def train_with_attributes(
    dataset: Dataset,
    config: TrainConfig,
    owners_E: NDArray[np.int64],
    weights_E: NDArray[np.int64],
    num_weights: int,
    path: Path,
) -> None:
    """Train a model with attributes, and save the weights of the best epoch.

    Args:
        dataset: At most 20,000 items, so that the whole catalogue are negatives.
        config: As resolved for the catalogue.
        owners_E: The item of each of its values.
        weights_E: The weight of each value, 1 to W - 1.
        num_weights: W.
        path: The file to write.
    """
    assert config.negatives == "all"
    assert config.learning_rate is not None
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    matrix = AttributeMatrix(owners_E, weights_E, dataset.num_items, num_weights)
    model = AttributeModel(config, dataset.num_items, num_weights)
    start_ND = svd_item_vectors(dataset.train, dataset.num_items, config.embedding_dim, generator)
    effects = fit_weights(start_ND.numpy(), dataset.item_counts(), owners_E, weights_E, num_weights)
    model.weights_WD.data.copy_(torch.from_numpy(effects))
    own = nn.Embedding(dataset.num_items, config.embedding_dim)
    own.weight.requires_grad_(False).copy_(start_ND - matrix.items(model.weights_WD.data))
    dense = torch.optim.Adam(
        [each for each in model.parameters() if each.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    rows = RowWiseAdam(own, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    batches = TrainingBatches(
        dataset.train,
        max_history_length=config.L,
        batch_size=config.batch_size,
        history_dropout=config.history_dropout or 0.0,
    )
    sampler = build_sampler("all", config.num_negatives, torch.from_numpy(dataset.item_counts()))

    def compose(is_kept_N1: Tensor | float) -> None:
        model.set_item_vectors(matrix.items(model.weights_WD.data) + is_kept_N1 * own.weight)

    compose(1.0)
    mean = WeightAverage(model, config.averaging)
    best, best_epoch = -1.0, 0
    for epoch in range(1, config.num_epochs + 1):
        for step, batch in enumerate(batches.epoch([config.seed, epoch]), start=1):
            is_kept_N1 = (torch.rand(dataset.num_items, 1, generator=generator) >= DROPPED).float()
            compose(is_kept_N1)
            losses = model.losses(batch, sampler.draw(generator, batch.targets_B), generator)
            dense.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            gradient_ND = losses.touched.gradient_RD
            model.weights_WD.grad = matrix.gradient(gradient_ND)
            dense.step()
            touched = TouchedRows(None, own.weight)
            touched.vectors_RD.grad = is_kept_N1 * gradient_ND
            rows.step(touched)
            compose(1.0)
            mean.after_step(model, step, batches.num_steps)
        recall = evaluate(mean.model, dataset.valid, exclude_history=False).recall_50
        if recall > best:
            best, best_epoch = recall, epoch
            torch.save(copy.deepcopy(mean.model.state_dict()), path)
        if epoch - best_epoch >= config.patience:
            break


def fit_by_likelihood(
    vectors_ND: NDArray[np.float32],
    owners_E: NDArray[np.int64],
    weights_E: NDArray[np.int64],
    ridge_WD: NDArray[np.float32],
    model: FoldInModel,
    num_events: float,
) -> NDArray[np.float32]:
    """Return the mean and the effects of all values, [W, D].

    Args:
        vectors_ND: Vectors of trained items.
        owners_E: The item of each of its values.
        weights_E: The weight of each value, 1 to W - 1.
        ridge_WD: Mean and effects by ridge regression.
        model: The softmax over the trained items, by a sample of users.
        num_events: Events of all trained items.
    """
    matrix = AttributeMatrix(owners_E, weights_E, len(vectors_ND), len(ridge_WD))
    start_WD = torch.from_numpy(ridge_WD)
    interests_SD = torch.from_numpy(model.interests_SD)
    log_rates_S = torch.from_numpy(np.float32(np.log(num_events)) - model.log_partition_S)
    chunks = [slice(first, first + _CHUNK_ITEMS) for first in range(0, len(vectors_ND), _CHUNK_ITEMS)]

    def expected(items_CD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the expected events of items, and the sums of the interests of their users."""
        rates_CS = torch.addmm(log_rates_S, items_CD, interests_SD.T).exp_()
        return rates_CS.sum(dim=1, keepdim=True), rates_CS @ interests_SD

    parts = [expected(torch.from_numpy(vectors_ND[chunk])) for chunk in chunks]
    expected_N1, sums_ND = (torch.cat(each) for each in zip(*parts, strict=True))
    items_N1 = (MAX_EVENTS / expected_N1.clamp_min(1.0)).clamp_max(1.0)
    variance = float(interests_SD.square().mean())
    penalty_W1 = torch.full((len(ridge_WD), 1), PENALTY_EVENTS * variance)
    penalty_W1[0] = 0
    # In these units the second derivatives are about equal, so that few steps are enough.
    unit_W1 = (matrix.gradient(items_N1 * expected_N1) * variance + penalty_W1).rsqrt()
    found_WD = torch.nn.Parameter(start_WD / unit_W1)
    optimiser = torch.optim.LBFGS([found_WD], max_iter=_NUM_STEPS, line_search_fn="strong_wolfe")

    @torch.no_grad()
    def loss() -> float:
        vectors = matrix.items(found_WD * unit_W1)
        change_WD = found_WD * unit_W1 - start_WD
        total = 0.5 * float((penalty_W1 * change_WD.square()).sum())
        gradient_ND = torch.empty_like(vectors)
        for chunk in chunks:
            events_C1, interests_CD = expected(vectors[chunk])
            each_C1 = events_C1 - (vectors[chunk] * sums_ND[chunk]).sum(dim=1, keepdim=True)
            total += float((items_N1[chunk] * each_C1).sum(dtype=torch.float64))
            gradient_ND[chunk] = items_N1[chunk] * (interests_CD - sums_ND[chunk])
        found_WD.grad = (matrix.gradient(gradient_ND) + penalty_W1 * change_WD) * unit_W1
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return np.asarray((found_WD.detach() * unit_W1).numpy())
