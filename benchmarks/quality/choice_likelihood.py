"""An experiment of the study of unseen items: effects of attributes by the likelihood of choices.

Ridge regression counts all directions and all users alike. The likelihood counts them by the choices of
users. Let a(i) be mean + sum of effects, u the interests of users, n the events of a user, and Z the sum of
exp(u·x) over the trained items with their vectors x. The map minimises

    sum over i of w(i) * (sum over u of n exp(u·a(i)) / Z - a(i) · sum over u of n exp(u·x(i)) / Z * u)

and a penalty of the distance to the effects of the ridge regression. This is a Poisson regression on the
events that the trained vectors expect; it is convex.

Legend: N items, W weights (the mean, then the values), D embedding, E values of items, S interests of users,
C items of a chunk.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from re4.bundle.fold_in import FoldInModel
from re4.training.model.attributes import MAX_EVENTS, AttributeMatrix

PENALTY_EVENTS: Final = 125.0
"""Events of a value whose information is as strong as the penalty."""
_NUM_STEPS: Final = 30
_CHUNK_ITEMS: Final = 4_096


def fit_by_likelihood(
    vectors_ND: NDArray[np.float32],
    matrix: AttributeMatrix,
    ridge_WD: NDArray[np.float32],
    model: FoldInModel,
    num_events: float,
) -> NDArray[np.float32]:
    """Return the mean and the effects of all values, [W, D].

    Args:
        vectors_ND: Vectors of trained items.
        matrix: Their attributes.
        ridge_WD: Mean and effects by ridge regression.
        model: The softmax over the trained items, by a sample of users.
        num_events: Events of all trained items.
    """
    start_WD = torch.from_numpy(ridge_WD)
    interests_SD = torch.from_numpy(model.interests_SD)
    log_rates_S = torch.from_numpy(np.float32(np.log(num_events)) - model.log_partition_S)
    chunks = [slice(first, first + _CHUNK_ITEMS) for first in range(0, len(vectors_ND), _CHUNK_ITEMS)]

    def expected(items_CD: Tensor) -> tuple[Tensor, Tensor]:
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
    unit_W1 = (matrix.weights(items_N1 * expected_N1) * variance + penalty_W1).rsqrt()
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
        found_WD.grad = (matrix.weights(gradient_ND) + penalty_W1 * change_WD) * unit_W1
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return np.asarray((found_WD.detach() * unit_W1).numpy())
