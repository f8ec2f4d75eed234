"""One optimiser step: Adam for the encoder and the flows, row-wise Adam for the item table."""

import torch

from training.item_table import RowAdam
from training.model import Losses, MultiInterestModel


class Optimiser:
    """Both optimisers of a model, with the model's own learning rate and weight decay."""

    def __init__(self, model: MultiInterestModel) -> None:
        config = model.config
        dense = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._dense = torch.optim.Adam(
            dense, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._items = RowAdam(
            model.item_embedding, learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )

    def step(self, losses: Losses) -> None:
        """Go back from the total loss to the gradients, and move every parameter that has one."""
        self._dense.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        self._dense.step()
        self._items.step(losses.touched)
