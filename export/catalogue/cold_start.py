"""The map from attributes to vectors: effects of values by ridge regression on trained items, and a scale.

    vector(i) = mean + scale * sum over the item's values v of effect(v)

Mean and effects are fitted to the trained items (`re4.training.model.attributes.fit_effects`). Predictions
deviate less from the mean than trained vectors, so without a scale they are in nobody's list. The scale gives
new items a chosen share of the places in the lists of held-out users.

Legend: N items, R trained items, C cold items, D embedding, W weights (the mean, then the effects),
E values of items, Q queries, K interests, M places.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attributes
from re4.bundle.cold_start import ColdStart, first_weights, num_weights, weights_of
from re4.bundle.manifest import AttributeInfo
from re4.bundle.scoring.exact_search import exact_search
from re4.exporting.catalogue.histories import evenly_spaced
from re4.exporting.storage.mapped_vectors import chunks, read_rows
from re4.training.model.attributes import AttributeMatrix, fit_effects

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
_MAX_LENGTH: Final = 1.5
"""Most that deviations from the mean may be as long as those of trained items, by their root mean squares."""
_CHUNK_ROWS: Final = 65_536

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
    events_R: NDArray[np.integer] | None,
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
        events_R: Training events of each of those; None where the vectors were trained with attributes.
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
        matrix = AttributeMatrix(owners, weights, len(rows), num_all)
        vectors_RD = torch.from_numpy(read_rows(vectors_ND, rows))
        events = None if events_R is None else events_R[is_used_R]
        return np.asarray(fit_effects(vectors_RD, events, matrix).numpy())

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
            max_scale=_MAX_LENGTH * trained_size / size,
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
