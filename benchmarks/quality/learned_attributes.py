"""Training in which an item's vector is a sum: vectors of its attribute values, learned, and an own part.

In each step the own part of some items is left out, so that the attributes' part can stand alone: it is
the vector of an item that training has not seen. Everything else is as in `re4 train`: losses, negatives,
averaging, the choice of the epoch. An experiment of the study of unseen items; no option of the product.

Legend: N items, W weights (the mean, then the values), D embedding, E values of items.
"""

import copy
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from re4.exporting.catalogue.cold_start import fit_weights
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
