"""Item vectors with attributes: an item's vector is its own part plus the vectors of its values.

    x(i) = own(i) + mean + sum over the item's values v of effect(v)

Mean and effects are trained with the own parts. In each step the own part of some items is left out, so
that the effects learn to stand alone: items that share values get vectors that are alike, and the map from
attributes to vectors that a rebuild fits (`fit_effects`) says more about items that no training has seen.
A run holds the sums only.

Legend: N items, R rows, D embedding, E values of items, W weights: the mean, then the effects.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from re4.training.model.attribute_values import AttributeValues

OWN_DROPOUT: Final = 0.3
"""Share of the items with a value whose own part is left out of a step."""
PENALTY: Final = 10.0
MAX_EVENTS: Final = 50
"""Events beyond which an item's vector does not count more."""
PENALTY_AMONG_EQUALS: Final = 3.0
"""Penalty where all items count alike."""

_MAX_STEPS: Final = 200
_TOLERANCE: Final = 1e-5


class AttributeMatrix(nn.Module):
    """Which weights each item has: weight 0, the mean, and those of its values."""

    def __init__(
        self, owners_E: NDArray[np.int64], weights_E: NDArray[np.int64], num_items: int, num_weights: int
    ) -> None:
        """Take the item of each value, and its weight, 1 to W - 1."""
        super().__init__()
        owners = torch.from_numpy(np.concatenate([np.arange(num_items), owners_E]))
        weights = torch.from_numpy(np.concatenate([np.zeros(num_items, np.int64), weights_E]))
        of_items, of_weights = _bags(owners, weights, num_items), _bags(weights, owners, num_weights)
        # Buffers go to the device of the model.
        self.register_buffer("_weights_E", of_items[0], persistent=False)
        self.register_buffer("_first_N1", of_items[1], persistent=False)
        self.register_buffer("_items_E", of_weights[0], persistent=False)
        self.register_buffer("_first_W1", of_weights[1], persistent=False)

    _weights_E: Tensor
    _first_N1: Tensor
    _items_E: Tensor
    _first_W1: Tensor

    def items(self, weights_WD: Tensor) -> Tensor:
        """Return the sum of the weights of each item, [N, D]."""
        return _sums(self._weights_E, weights_WD, self._first_N1[:-1])

    def rows(self, weights_WD: Tensor, rows_R: Tensor) -> Tensor:
        """Return the sum of the weights of some items, [R, D]."""
        lengths_R = self._lengths(rows_R)
        starts_R = lengths_R.cumsum(0) - lengths_R
        places_E = torch.arange(int(lengths_R.sum()), device=rows_R.device)
        places_E = places_E + (self._first_N1[rows_R] - starts_R).repeat_interleave(lengths_R)
        return _sums(self._weights_E[places_E], weights_WD, starts_R)

    def has_values(self, rows_R: Tensor | None) -> Tensor:
        """Return which items, of some or of all, have a value: bool [R]."""
        return self._lengths(rows_R) > 1

    def _lengths(self, rows_R: Tensor | None) -> Tensor:
        """Return the number of weights of items, the mean among them."""
        if rows_R is None:
            return self._first_N1.diff()
        return self._first_N1[rows_R + 1] - self._first_N1[rows_R]

    def weights(self, values_ND: Tensor) -> Tensor:
        """Return the sum of the values of each weight's items, [W, D]."""
        return _sums(self._items_E, values_ND, self._first_W1[:-1])


def _bags(owners_E: Tensor, values_E: Tensor, num_owners: int) -> tuple[Tensor, Tensor]:
    """Return the values of each owner one after another, and the bounds of each owner's."""
    ends = torch.bincount(owners_E, minlength=num_owners).cumsum(0)
    return values_E[torch.argsort(owners_E, stable=True)], F.pad(ends, (1, 0))


def _sums(places_E: Tensor, table: Tensor, starts: Tensor) -> Tensor:
    sums: Tensor = F.embedding_bag(places_E, table, starts, mode="sum")
    return sums


def fit_effects(
    vectors_ND: Tensor,
    events_N: NDArray[np.integer] | None,
    matrix: AttributeMatrix,
    *,
    penalty: float | None = None,
) -> Tensor:
    """Return the mean and the effects of all values by ridge regression, [W, D].

    They minimise, over items with vectors x and w = min(events, `MAX_EVENTS`),

        sum of w(i) |x(i) - mean - sum of effect(v)|² + penalty * sum of |effect(v)|²

    Effects of rare values are shrunk, as in a random-effects model; items with many events have better
    vectors. The normal equations are solved by conjugate gradients: cost and memory grow with the number of
    values of items, not with the square of the number of different values.

    Args:
        vectors_ND: Vectors of trained items, float32.
        events_N: Events of each in training; None for w = 1, which suits vectors that were trained with
            attributes: those of rare items are hardly worse.
        matrix: Their attributes.
        penalty: On the squared length of an effect; None for `PENALTY`, or `PENALTY_AMONG_EQUALS`.
    """
    if penalty is None:
        penalty = PENALTY_AMONG_EQUALS if events_N is None else PENALTY
    counted_N = np.ones(len(vectors_ND)) if events_N is None else np.clip(events_N, 1, MAX_EVENTS)
    precision_N1 = torch.from_numpy(counted_N.astype(np.float32))[:, None]
    right_WD = matrix.weights(precision_N1 * vectors_ND)
    penalty_W1 = torch.full((len(right_WD), 1), penalty)
    penalty_W1[0] = 0
    diagonal_W1 = matrix.weights(precision_N1) + penalty_W1
    found_WD = torch.zeros_like(right_WD)
    rest_WD = right_WD.clone()
    step_WD = rest_WD / diagonal_W1
    size_D = (rest_WD * step_WD).sum(dim=0)
    wanted_D = _TOLERANCE * right_WD.norm(dim=0)
    for _ in range(_MAX_STEPS):
        image_WD = matrix.weights(precision_N1 * matrix.items(step_WD)) + penalty_W1 * step_WD
        length_D = size_D / (step_WD * image_WD).sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        found_WD += length_D * step_WD
        rest_WD -= length_D * image_WD
        if (rest_WD.norm(dim=0) <= wanted_D).all():
            break
        scaled_WD = rest_WD / diagonal_W1
        before_D, size_D = size_D, (rest_WD * scaled_WD).sum(dim=0)
        step_WD = scaled_WD + size_D / before_D.clamp_min(torch.finfo(torch.float32).tiny) * step_WD
    return found_WD


class AttributeEffects(nn.Module):
    """The mean and the effects of values, in training."""

    def __init__(self, values: AttributeValues, events_N: NDArray[np.integer], embedding_dim: int) -> None:
        """Begin with random effects; `events_N` are the training events of each item."""
        super().__init__()
        self.matrix = AttributeMatrix(values.owners_E, values.weights_E, len(events_N), values.num_weights)
        self._events_N = events_N
        # Not 0: an item without its own part must have a direction.
        generator = torch.Generator().manual_seed(0)
        weights_WD = torch.randn(values.num_weights, embedding_dim, generator=generator)
        self.weights_WD = nn.Parameter(weights_WD * embedding_dim**-0.5)

    def own_parts(self, vectors_ND: Tensor) -> Tensor:
        """Fit the effects to vectors; return what they leave, the own parts [N, D]."""
        with torch.no_grad():
            self.weights_WD.copy_(fit_effects(vectors_ND, self._events_N, self.matrix))
            return vectors_ND - self.matrix.items(self.weights_WD)

    def without_some_own(self, own_RD: Tensor, rows_R: Tensor | None, generator: torch.Generator) -> Tensor:
        """Leave out the own part of some of the items that have a value."""
        drawn_R = torch.rand(len(own_RD), generator=generator, device=generator.device).to(own_RD.device)
        is_kept_R = (drawn_R >= OWN_DROPOUT) | ~self.matrix.has_values(rows_R)
        return own_RD * is_kept_R[:, None]

    def added_to(self, own_RD: Tensor, rows_R: Tensor | None) -> Tensor:
        """Return the vectors of rows, or of all items, from their own parts."""
        of_values_RD = (
            self.matrix.items(self.weights_WD)
            if rows_R is None
            else self.matrix.rows(self.weights_WD, rows_R)
        )
        return own_RD + of_values_RD
