"""One optimiser step: Adam for the encoder and the flows, row-wise Adam for the item table."""

import torch
from torch import Tensor

from re4.training.model.item_embedding import RowWiseAdam
from re4.training.model.model import Losses, MultiInterestModel


class Optimiser:
    """Both optimisers of a model, with the model's own learning rate and weight decay."""

    def __init__(self, model: MultiInterestModel) -> None:
        config = model.config
        assert config.learning_rate is not None, "resolve comes first"
        dense = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Some encoders have no weights: a group may be empty, a list of groups may not.
        self._dense = torch.optim.Adam(
            [{"params": dense}], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._items = RowWiseAdam(
            model.item_embedding, learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )

    def state(self) -> dict[str, Tensor]:
        """Give the moments and step counts by name, for a checkpoint."""
        moments = {
            f"dense.{number}.{name}": value
            for number, values in self._dense.state_dict()["state"].items()
            for name, value in values.items()
        }
        return moments | {f"items.{name}": value for name, value in self._items.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        dense: dict[int, dict[str, Tensor]] = {}
        items: dict[str, Tensor] = {}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part == "items":
                items[rest] = value
            else:
                number, _, moment = rest.partition(".")
                # Kept as it is given, and so copied: it may be a view of a mapped checkpoint.
                dense.setdefault(int(number), {})[moment] = value.clone()
        self._dense.load_state_dict({**self._dense.state_dict(), "state": dense})
        self._items.restore(items)

    def step(self, losses: Losses) -> None:
        """Go back from the total loss to the gradients, and move every parameter that has one."""
        self._dense.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        self._dense.step()
        self._items.step(losses.touched)
