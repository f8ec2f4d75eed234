"""A running mean of the weights: it is judged and kept, while training goes on from the weights themselves.

Steps of a constant size circle around where they lead to; the mean of where they have been lies nearer to it.
At first it reaches back over the last quarter of the training (Shamir and Zhang, "Stochastic Gradient Descent
for Non-smooth Optimization", ICML 2013), later over a number of epochs. It is taken a few times an epoch: a
step's cost does not grow with the catalogue.
"""

import copy

import torch
from torch import Tensor

from re4.training.model.model import MultiInterestModel

TIMES_PER_EPOCH = 16
_RECENCY = 3
"""Of n models that were taken in, the last (n + 3) / 4 make up the mean, if all counted alike."""


class WeightAverage:
    """The mean of a model's weights over its last epochs, older ones counting less and less."""

    def __init__(self, model: MultiInterestModel, num_epochs: float) -> None:
        """Begin with the model's own weights, which no longer count once there is something to take in.

        Args:
            model: what is trained.
            num_epochs: epochs that the mean reaches back, in the sense of an exponential mean.
        """
        self.model = copy.deepcopy(model)
        self._least_share = 1 / max(1.0, num_epochs * TIMES_PER_EPOCH)
        self._num_taken = 0

    def state(self) -> dict[str, Tensor]:
        """Give the mean, and how much is in it, for a checkpoint."""
        return {"num_taken": torch.tensor(self._num_taken)} | {
            f"model.{name}": value for name, value in self.model.state_dict().items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._num_taken = int(state["num_taken"])
        self.model.load_state_dict({name: state[f"model.{name}"] for name in self.model.state_dict()})

    @torch.no_grad()
    def after_step(self, model: MultiInterestModel, step: int, num_steps: int) -> None:
        """Take in the weights, where the step is one of those of an epoch after which that is done.

        Args:
            model: what is trained.
            step: steps of the epoch that are done, from 1.
            num_steps: steps of an epoch.
        """
        if step * TIMES_PER_EPOCH // num_steps == (step - 1) * TIMES_PER_EPOCH // num_steps:
            return
        self._num_taken += 1
        share = max((1 + _RECENCY) / (self._num_taken + _RECENCY), self._least_share)
        for mean, now in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, share)
