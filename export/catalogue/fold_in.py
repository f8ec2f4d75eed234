"""The likelihood by which events move the vectors of new items: a sample of held-out users, and a covariance.

It holds where the softmax of scores states how often items are chosen, as after a training with the
cross-entropy over the catalogue. This is checked: on trained items, the logarithm of the number of events
must rise about as fast as the logarithm of the expected share. Otherwise there is no model, and events move
vectors by the mean of interests (`bundle/cold_start.py`).

Legend: R trained items, Q users, K interests, S all their interests, D embedding.
"""

import logging
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attributes
from re4.bundle.cold_start import ColdStart
from re4.bundle.fold_in import FoldInModel
from re4.exporting.catalogue.histories import evenly_spaced
from re4.exporting.storage.mapped_vectors import read_rows
from re4.training.model.attributes import MAX_EVENTS

MAX_USERS: Final = 512
MAX_INTERESTS: Final = 1024
"""Of all users together. Each adds 0.5 µs to a step of a fit."""
SLOPES: Final = (0.5, 2.0)
"""Allowed rise of the logarithm of events with the logarithm of the expected share."""
_MAX_ITEMS: Final = 65_536
_CHUNK_ITEMS: Final = 4_096
_MIN_VARIANCE: Final = 1e-3
"""Smallest variance in any direction, as a share of the mean one."""

_log = logging.getLogger(__name__)


class FittedFoldIn(NamedTuple):
    """The model of a version."""

    model: FoldInModel | None
    """None where the scores do not state how often items are chosen."""
    slope: float
    """Rise of the logarithm of events with the logarithm of the expected share; 0 where it is not defined."""


def num_users_for(num_interests: int) -> int:
    """Return the number of held-out users to take, at most."""
    return max(1, min(MAX_USERS, MAX_INTERESTS // num_interests))


def fit_fold_in(
    vectors_ND: NDArray[np.float32],
    fitted_rows: NDArray[np.int64],
    events_R: NDArray[np.integer],
    attributes: Attributes,
    cold_start: ColdStart,
    interests_QKD: NDArray[np.float32],
) -> FittedFoldIn:
    """Fit the model to trained items.

    Args:
        vectors_ND: Vectors of all items.
        fitted_rows: Trained items, ascending.
        events_R: Training events of each of those.
        attributes: The attributes of all items.
        cold_start: The map from attributes to vectors.
        interests_QKD: Interests of held-out users.
    """
    sample = evenly_spaced(len(fitted_rows), min(len(fitted_rows), _MAX_ITEMS))
    rows_R, events_R = fitted_rows[sample], events_R[sample]
    vectors_RD = read_rows(vectors_ND, rows_R)
    from_attributes_RD = cold_start.vectors_of_rows(attributes, rows_R)
    fitted = fold_in_model(
        vectors_RD, from_attributes_RD, events_R, interests_QKD, num_items=len(fitted_rows)
    )
    if fitted.model is None:
        _log.info(
            f"scores do not state how often items are chosen (slope {fitted.slope:.2f}, allowed are "
            f"{SLOPES[0]} to {SLOPES[1]}): events move new items by the mean of interests"
        )
    return fitted


def fold_in_model(
    vectors_RD: NDArray[np.float32],
    from_attributes_RD: NDArray[np.float32],
    events_R: NDArray[np.integer],
    interests_QKD: NDArray[np.float32],
    *,
    num_items: int,
) -> FittedFoldIn:
    """Return the model by trained items, or a sample of the `num_items` trained items.

    Args:
        vectors_RD: Their vectors.
        from_attributes_RD: Their vectors from attributes.
        events_R: Training events of each.
        interests_QKD: Interests of held-out users.
        num_items: Number of trained items.
    """
    num_users, num_interests, dim = interests_QKD.shape
    interests_SD = np.ascontiguousarray(interests_QKD.reshape(-1, dim))
    chunks = [slice(start, start + _CHUNK_ITEMS) for start in range(0, len(vectors_RD), _CHUNK_ITEMS)]
    most_Q1 = np.full((num_users, 1), -np.inf)
    sums_Q1 = np.zeros((num_users, 1))
    for chunk in chunks:
        logits_QE = (interests_SD @ vectors_RD[chunk].T).reshape(num_users, -1).astype(np.float64)
        new_Q1 = np.maximum(most_Q1, logits_QE.max(axis=1, keepdims=True))
        sums_Q1 *= np.exp(most_Q1 - new_Q1)
        sums_Q1 += np.exp(logits_QE - new_Q1).sum(axis=1, keepdims=True)
        most_Q1 = new_Q1
    log_partition_Q = (most_Q1 + np.log(sums_Q1))[:, 0] + np.log(num_users * num_items / len(vectors_RD))
    log_partition_S = np.repeat(log_partition_Q, num_interests).astype(np.float32)
    shares_R = np.concatenate(
        [
            np.exp(interests_SD @ vectors_RD[chunk].T - log_partition_S[:, None], dtype=np.float64).sum(
                axis=0
            )
            for chunk in chunks
        ]
    )
    slope = _slope(shares_R, events_R)
    if not SLOPES[0] <= slope <= SLOPES[1]:
        return FittedFoldIn(None, slope)
    weights_R1 = np.clip(events_R, 1, MAX_EVENTS).astype(np.float64)[:, None]
    residuals_RD = vectors_RD.astype(np.float64) - from_attributes_RD
    covariance_DD = (weights_R1 * residuals_RD).T @ residuals_RD / weights_R1.sum()
    variance = float(np.trace(covariance_DD)) / dim
    if not variance > 0:
        return FittedFoldIn(None, slope)
    precision_DD = np.linalg.inv(covariance_DD + _MIN_VARIANCE * variance * np.eye(dim))
    model = FoldInModel(
        interests_SD=interests_SD,
        log_partition_S=log_partition_S,
        precision_DD=precision_DD.astype(np.float32),
    )
    return FittedFoldIn(model, slope)


def _slope(shares_R: NDArray[np.float64], events_R: NDArray[np.integer]) -> float:
    """Return the rise of log(events) with log(share) by least squares; 0 where it is not defined."""
    is_used_R = (shares_R > 0) & (events_R > 0)
    x, y = np.log(shares_R[is_used_R]), np.log(events_R[is_used_R])
    if len(x) < 2 or not np.ptp(x) > 0:
        return 0.0
    x -= x.mean()
    return float(x @ (y - y.mean()) / (x @ x))
