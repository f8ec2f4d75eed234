"""The plainest form of an index's search for one request: an interest at a time, and its lists one by one."""

from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np


def plain_search(
    index: Any, interests_KD: np.ndarray, num_found: int, settings: Mapping[str, Any], parameters: Any
) -> list[tuple[int, float]]:
    """Return rows and approximate scores: of a shared budget, or of a search with these FAISS parameters."""
    found: list[tuple[int, float]] = []
    if "shared_nprobe" not in settings:
        results = [index.search(interests_KD, num_found, params=parameters)]
    else:
        results = [
            _read(index, interest_D, lists, num_found)
            for interest_D, lists in best_lists(
                index, interests_KD, settings["shared_nprobe"], settings["reach_drop"]
            )
        ]
    for scores, rows in results:
        found += zip(rows.ravel().tolist(), scores.ravel().tolist(), strict=True)
    return [(row, score) for row, score in found if row >= 0]


def best_lists(
    index: Any, interests_KD: np.ndarray, num_lists: int, reach_drop: float
) -> list[tuple[np.ndarray, list[int]]]:
    """Return each interest with the lists that it reads: of all pairs, those of the largest reach."""
    reaches_CD = reaches_of(index)
    pairs = sorted(
        (
            (float(reach), k, number)
            for k, interest_D in enumerate(interests_KD)
            if k == 0 or not np.array_equal(interest_D, interests_KD[0])
            for number, reach in enumerate(reaches_CD @ interest_D)
        ),
        reverse=True,
    )
    best = pairs[0][0]
    read = [pair for pair in pairs[:num_lists] if pair[0] >= best - reach_drop * abs(best)]
    return [
        (interest_D, [number for _, owner, number in read if owner == k])
        for k, interest_D in enumerate(interests_KD)
    ]


def reaches_of(index: Any) -> np.ndarray:
    """Return the reach of each list, as the index holds it."""
    chooser = faiss.downcast_index(index.quantizer)
    chooser = faiss.downcast_index(getattr(chooser, "base_index", chooser))
    return faiss.downcast_index(getattr(chooser, "storage", chooser)).reconstruct_n(0, index.nlist)


def _read(
    index: Any, interest_D: np.ndarray, lists: list[int], num_found: int
) -> tuple[np.ndarray, np.ndarray]:
    if not lists:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    products = [float(interest_D @ index.quantizer.reconstruct(number)) for number in lists]
    before, index.nprobe = index.nprobe, len(lists)
    try:
        return index.search_preassigned(
            interest_D[None], num_found, np.array([lists]), np.array([products], np.float32)
        )
    finally:
        index.nprobe = before
