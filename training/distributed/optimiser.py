"""The optimiser on several ranks: Adam for the encoder by summed gradients, row-wise Adagrad for the items.

TorchRec's fused optimisers for CPUs and GPUs have row-wise Adagrad in common. It keeps one number a
row, where the row-wise Adam of a single process also keeps a first moment as large as the table.
"""

from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from re4.training.distributed.item_table import ItemTable
from re4.training.distributed.model import LookedUpRows, ShardedModel
from re4.training.model.model import Losses, TouchedRows
from re4.training.trainer.optimiser import Optimiser

ITEM_RATE: Final = 10.0
"""Learning rate of the items, as a multiple of the encoder's."""


class ShardedOptimiser(Optimiser):
    """Updates the encoder alike on every rank, and each row on the rank that holds it."""

    def __init__(self, model: ShardedModel) -> None:
        config = model.config
        assert config.learning_rate is not None, "resolve comes first"
        super().__init__(model, FusedAdagrad(model.items, ITEM_RATE * config.learning_rate))
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def backward(self, losses: Losses) -> None:
        """Run the backward pass of this rank's part, and add up the encoder's gradients of all ranks."""
        super().backward(losses)
        if not self._parameters:
            return
        flat = torch.cat(
            [
                (torch.zeros_like(each) if each.grad is None else each.grad).flatten()
                for each in self._parameters
            ]
        )
        dist.all_reduce(flat)
        pieces = torch.split(flat, [each.numel() for each in self._parameters])
        for parameter, piece in zip(self._parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)


class FusedAdagrad:
    """TorchRec's fused row-wise Adagrad, as the optimiser of the item vectors."""

    def __init__(self, items: ItemTable, learning_rate: float) -> None:
        self._items, self._learning_rate = items, learning_rate

    def state(self) -> dict[str, Tensor]:
        """Return this rank's sums of squared gradients."""
        return {"squares": self._items.squares_n}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""
        self._items.squares_n.copy_(state["squares"])

    def step(self, touched: TouchedRows, *, rate: float) -> None:
        """Update the touched rows of all ranks."""
        assert isinstance(touched, LookedUpRows), "a sharded model looks its rows up"
        self._items.set_rate(rate * self._learning_rate)
        touched.update()
