"""The map from attributes to vectors: effects of values by ridge regression on trained items, and a scale.

    vector(i) = mean + scale * sum over the item's values v of effect(v)

Mean and effects minimise, over trained items with vectors x and w = min(events, MAX_EVENTS),

    sum of w(i) |x(i) - mean - sum of effect(v)|² + PENALTY * sum of |effect(v)|²

Effects of rare values are shrunk, as in a random-effects model; items with many events have better vectors.
Predictions deviate less from the mean than trained vectors, so without a scale they are in nobody's list.
The scale gives new items a chosen share of the places in the lists of held-out users.

Legend: N items, R trained items, C cold items, D embedding, W weights (the mean, then the effects),
E values of items, Q queries, K interests, M places.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from re4.bundle.attributes.reader import Attributes
from re4.bundle.cold_start import ColdStart, first_weights, num_weights, weights_of
from re4.bundle.manifest import AttributeInfo
from re4.bundle.scoring.exact_search import exact_search
from re4.exporting.catalogue.histories import evenly_spaced
from re4.exporting.storage.mapped_vectors import chunks, read_rows

PENALTY: Final = 10.0
MAX_EVENTS: Final = 50
"""Events beyond which an item's vector does not count more."""
MAX_SHARE: Final = 0.1
"""Most that the default gives: the share of the places is the cold items' share of the catalogue."""

_MAX_FITTED_ITEMS: Final = 1_000_000
_MIN_COLD_ITEMS: Final = 100
_MIN_COLD_PLACES: Final = 200
"""With fewer cold items or places of theirs, trained items stand in for them to choose the scale …"""
_STAND_IN_STEP: Final = 10
"""… one of so many: their vectors are predicted from the others."""
_MAX_CATALOGUE_SHARE: Final = 0.05
"""Places counted, at most this share of the catalogue: in a tiny one every item is in every list."""
_CHUNK_ROWS: Final = 65_536

_MAX_STEPS: Final = 200
_TOLERANCE: Final = 1e-5
_NUM_SCALES: Final = 65
_BISECTIONS: Final = 20


class FittedColdStart(NamedTuple):
    """The map of a version."""

    cold_start: ColdStart
    scale: float
    """The factor of all deviations from the mean; it is part of the map's weights."""
    share: float
    """Share of the places of held-out users that the items have by which the scale was chosen."""


def fit_cold_start(
    vectors_ND: NDArray[np.float32],
    cold_rows: NDArray[np.int64],
    fitted_rows: NDArray[np.int64],
    events_R: NDArray[np.integer],
    attributes: Attributes,
    infos: Sequence[AttributeInfo],
    interests_QKD: NDArray[np.float32],
    *,
    share: float | None,
    num_places: int,
) -> FittedColdStart:
    """Fit the map to trained items and choose its scale.

    The scale is chosen on the cold items. Where they are few, every tenth trained item stands in for them.

    Args:
        vectors_ND: Vectors of all items; those of cold items are not read.
        cold_rows: The cold items, ascending.
        fitted_rows: Trained items, ascending.
        events_R: Training events of each of those.
        attributes: The attributes of all items.
        infos: The same, as in the manifest.
        interests_QKD: Interests of held-out users.
        share: Share of the places that the cold items, or those that stand in for them, are to have; None for
            their share of the catalogue, at most `MAX_SHARE`.
        num_places: Length of a list.
    """
    firsts, num_all = first_weights(infos), num_weights(infos)
    num_places = max(1, min(num_places, int(_MAX_CATALOGUE_SHARE * len(vectors_ND))))

    def fit(is_used_R: NDArray[np.bool_]) -> NDArray[np.float32]:
        rows = fitted_rows[is_used_R]
        owners, weights = weights_of(attributes, firsts, rows)
        return fit_weights(read_rows(vectors_ND, rows), events_R[is_used_R], owners, weights, num_all)

    weights_WD = fit(np.ones(len(fitted_rows), np.bool_))
    trained_RD = read_rows(vectors_ND, fitted_rows)
    typical_norm = float(np.median(np.linalg.norm(trained_RD, axis=1)))
    trained_size = _root_mean_square(trained_RD - weights_WD[0])
    del trained_RD

    judged_rows, judging_WD = cold_rows, weights_WD
    expected_places = len(cold_rows) / len(vectors_ND) * len(interests_QKD) * num_places
    if len(cold_rows) < _MIN_COLD_ITEMS or expected_places < _MIN_COLD_PLACES:
        stands_in_R = np.arange(len(fitted_rows)) % _STAND_IN_STEP == _STAND_IN_STEP // 2
        judged_rows, judging_WD = fitted_rows[stands_in_R], fit(~stands_in_R)
    unscaled = ColdStart(weights_WD=judging_WD, typical_norm=typical_norm, firsts=firsts)
    deviations_CD = unscaled.vectors_of_rows(attributes, judged_rows) - judging_WD[0]
    size = _root_mean_square(deviations_CD)
    found = Scale(1.0, 0.0)
    if size > 0:
        others_QM, _ = exact_search(
            interests_QKD,
            vectors_ND,
            num_places,
            excluded_rows=np.union1d(judged_rows, cold_rows),
            read_chunks=chunks,
        )
        found = scale_for_share(
            interests_QKD,
            others_QM,
            judging_WD[0],
            deviations_CD,
            share=min(MAX_SHARE, len(judged_rows) / len(vectors_ND)) if share is None else share,
            max_scale=trained_size / size,
        )
    weights_WD[1:] *= found.scale
    fitted = ColdStart(weights_WD=weights_WD, typical_norm=typical_norm, firsts=firsts)
    return FittedColdStart(fitted, *found)


def fitted_rows(trained_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the trained items to fit the map to: all, or as many as memory is meant for."""
    return trained_rows[evenly_spaced(len(trained_rows), min(len(trained_rows), _MAX_FITTED_ITEMS))]


def write_cold_vectors(
    path: Path, cold_rows: NDArray[np.int64], cold_start: ColdStart, attributes: Attributes
) -> int:
    """Write the vectors of cold items into a file of all vectors.

    Returns:
        How many of the vectors are the mean: no trained item has a value of theirs, or the scale is 0.
    """
    vectors_ND = np.load(path, mmap_mode="r+")
    has_effect_W = np.asarray(cold_start.weights_WD != 0).any(axis=1)
    num_at_mean = 0
    for start in range(0, len(cold_rows), _CHUNK_ROWS):
        rows = cold_rows[start : start + _CHUNK_ROWS]
        vectors_ND[rows] = cold_start.vectors_of_rows(attributes, rows)
        owners, weights = weights_of(attributes, cold_start.firsts, rows)
        num_at_mean += len(rows) - len(np.unique(owners[np.take(has_effect_W, weights)]))
    vectors_ND.flush()
    return num_at_mean


def _root_mean_square(vectors_RD: NDArray[np.float32]) -> float:
    """Return the root mean square of norms."""
    if not len(vectors_RD):
        return 0.0
    return float(np.sqrt(np.einsum("rd,rd->r", vectors_RD, vectors_RD, dtype=np.float64).mean()))


def fit_weights(
    vectors_ND: NDArray[np.float32],
    events_N: NDArray[np.integer],
    owners_E: NDArray[np.int64],
    weights_E: NDArray[np.int64],
    num_weights: int,
    *,
    penalty: float = PENALTY,
) -> NDArray[np.float32]:
    """Return the mean and the effects of all values, unscaled: [W, D].

    The normal equations are solved by conjugate gradients, so that cost and memory grow with the number of
    values of items, not with the square of the number of different values.

    Args:
        vectors_ND: Vectors of trained items.
        events_N: Events of each in training.
        owners_E: The item of each of its values.
        weights_E: The weight of each value, 1 to W - 1.
        num_weights: W.
        penalty: As `PENALTY`.
    """
    num_items = len(vectors_ND)
    owners = np.concatenate([np.arange(num_items), owners_E])
    weights = np.concatenate([np.zeros(num_items, np.int64), weights_E])
    precision_N1 = torch.from_numpy(np.clip(events_N, 1, MAX_EVENTS).astype(np.float32))[:, None]
    to_items = _bags(owners, weights, num_items)
    to_weights = _bags(weights, owners, num_weights)
    penalty_W1 = torch.full((num_weights, 1), penalty)
    penalty_W1[0] = 0

    def gather(bags: tuple[torch.Tensor, torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        sums: torch.Tensor = embedding_bag(bags[0], values, bags[1], mode="sum")
        return sums

    diagonal_W1 = gather(to_weights, precision_N1) + penalty_W1
    right_WD = gather(to_weights, precision_N1 * torch.from_numpy(np.ascontiguousarray(vectors_ND)))
    found_WD = torch.zeros_like(right_WD)
    rest_WD = right_WD.clone()
    step_WD = rest_WD / diagonal_W1
    size_D = (rest_WD * step_WD).sum(dim=0)
    wanted_D = _TOLERANCE * right_WD.norm(dim=0)
    for _ in range(_MAX_STEPS):
        image_WD = gather(to_weights, precision_N1 * gather(to_items, step_WD)) + penalty_W1 * step_WD
        length_D = size_D / (step_WD * image_WD).sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        found_WD += length_D * step_WD
        rest_WD -= length_D * image_WD
        if (rest_WD.norm(dim=0) <= wanted_D).all():
            break
        scaled_WD = rest_WD / diagonal_W1
        before_D, size_D = size_D, (rest_WD * scaled_WD).sum(dim=0)
        step_WD = scaled_WD + size_D / before_D.clamp_min(torch.finfo(torch.float32).tiny) * step_WD
    return np.asarray(found_WD.numpy())


def _bags(
    owners_E: NDArray[np.int64], values_E: NDArray[np.int64], num_owners: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of each owner one after another, and where each owner's begin."""
    ends = np.cumsum(np.bincount(owners_E, minlength=num_owners))
    starts = np.concatenate([[0], ends[:-1]])
    return torch.from_numpy(values_E[np.argsort(owners_E, kind="stable")]), torch.from_numpy(starts)


class Scale(NamedTuple):
    """The scale of the deviations of cold items."""

    scale: float
    share: float
    """Share of the places of held-out users that cold items get with it."""


def scale_for_share(
    interests_QKD: NDArray[np.float32],
    other_scores_QM: NDArray[np.float32],
    mean_D: NDArray[np.float32],
    deviations_CD: NDArray[np.float32],
    *,
    share: float,
    max_scale: float,
) -> Scale:
    """Return the smallest scale with which cold items get a share of the places of held-out users.

    Where no scale gives it, return the one with the nearest share, above 0.

    The order of the deviations by one interest's inner products does not depend on the scale. So the best M
    deviations of each interest hold all items that can be among the first M with any scale, and one search
    is enough.

    Args:
        interests_QKD: Interests of held-out users.
        other_scores_QM: The best M scores of each user among the other items, best first.
        mean_D: The vector of a cold item with the scale 0.
        deviations_CD: Unscaled deviations of the cold items.
        share: The share wanted, 0 to 1; 0 for the scale 0.
        max_scale: The largest scale allowed.
    """
    num_queries, num_interests, dim = interests_QKD.shape
    num_places = other_scores_QM.shape[1]
    products, rows = exact_search(interests_QKD.reshape(-1, 1, dim), deviations_CD, num_places)
    products_QKM = products.reshape(num_queries, num_interests, -1)
    rows_QP = rows.reshape(num_queries, -1)
    by_row_QP = np.argsort(rows_QP, axis=1, kind="stable")
    rows_QP = np.take_along_axis(rows_QP, by_row_QP, 1)
    is_first_QP = np.diff(rows_QP, prepend=-1, axis=1) > 0
    starts = np.flatnonzero(is_first_QP)
    base_QK1 = (interests_QKD @ mean_D)[:, :, None]

    def share_at(scale: float) -> float:
        scores_QP = (base_QK1 + scale * products_QKM).reshape(num_queries, -1)
        best = np.maximum.reduceat(np.take_along_axis(scores_QP, by_row_QP, 1).reshape(-1), starts)
        cold_QP = np.full(rows_QP.shape, -np.inf, np.float32)
        cold_QP[is_first_QP] = best
        both = np.concatenate([other_scores_QM, cold_QP], axis=1)
        first = np.argsort(-both, axis=1, kind="stable")[:, :num_places]
        return float((first >= num_places).mean())

    if not share:
        return Scale(0.0, share_at(0.0))
    # The share need not rise: the mean may be in many lists, and very long deviations win few users only.
    scales = np.linspace(0.0, max_scale, _NUM_SCALES)
    excess = np.array([share_at(scale) for scale in scales]) - share
    is_crossing = (excess[:-1] < 0) != (excess[1:] < 0)
    if not is_crossing.any():
        nearest = 1 + int(np.abs(excess[1:]).argmin())
        return Scale(float(scales[nearest]), float(excess[nearest] + share))
    first = int(is_crossing.argmax())
    low, high = float(scales[first]), float(scales[first + 1])
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_as_low = (share_at(middle) < share) == (excess[first] < 0)
        low, high = (middle, high) if is_as_low else (low, middle)
    return Scale(high, share_at(high))
