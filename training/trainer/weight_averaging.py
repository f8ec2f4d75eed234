"""A running mean of the weights, which is evaluated and saved; training continues from the weights.

With a constant learning rate the weights circle around an optimum, and their mean is nearer to it.
At first the mean covers the last quarter of the training (Shamir and Zhang, "Stochastic Gradient
Descent for Non-smooth Optimization", ICML 2013), later a number of epochs. It is updated a few
times an epoch, because an update reads the whole catalogue. It takes the memory of one more copy of
the weights.
"""

import copy

import torch
from torch import Tensor

from re4.training.model.model import MultiInterestModel

TIMES_PER_EPOCH = 16
_RECENCY = 3
"""Of n updates, the mean covers the last (n + 3) / 4, were they weighted equally."""


class WeightAverage:
    """The exponential mean of a model's weights over its last epochs."""

    def __init__(self, model: MultiInterestModel, num_epochs: float) -> None:
        """Begin with the model's weights; the first update replaces them.

        Args:
            model: the model in training.
            num_epochs: epochs that the exponential mean covers.
        """
        self.model = copy.deepcopy(model)
        self._least_share = 1 / max(1.0, num_epochs * TIMES_PER_EPOCH)
        self._num_taken = 0

    def state(self) -> dict[str, Tensor]:
        """Return the mean and the number of its updates, for a checkpoint."""
        return {"num_taken": torch.tensor(self._num_taken)} | {
            f"model.{name}": value for name, value in self.model.state_dict().items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""
        self._num_taken = int(state["num_taken"])
        self.model.load_state_dict({name: state[f"model.{name}"] for name in self.model.state_dict()})

    @torch.no_grad()
    def after_step(self, model: MultiInterestModel, step: int, num_steps: int) -> None:
        """Update the mean after `TIMES_PER_EPOCH` evenly spaced steps of an epoch; else do nothing.

        Args:
            model: the model in training.
            step: number of the step within the epoch, from 1.
            num_steps: steps of an epoch.
        """
        if step * TIMES_PER_EPOCH // num_steps == (step - 1) * TIMES_PER_EPOCH // num_steps:
            return
        self._num_taken += 1
        share = max((1 + _RECENCY) / (self._num_taken + _RECENCY), self._least_share)
        for mean, now in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, share)
