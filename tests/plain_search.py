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
            for interest_D, lists in best_lists(index, interests_KD, settings["shared_nprobe"])
        ]
    for scores, rows in results:
        found += zip(rows.ravel().tolist(), scores.ravel().tolist(), strict=True)
    return [(row, score) for row, score in found if row >= 0]


def best_lists(index: Any, interests_KD: np.ndarray, num_lists: int) -> list[tuple[np.ndarray, list[int]]]:
    """Return each interest with the lists that it reads: of all pairs, those of the largest reach."""
    chooser = faiss.downcast_index(index.quantizer)
    chooser = faiss.downcast_index(getattr(chooser, "base_index", chooser))
    reaches, lists = chooser.search(interests_KD, index.nlist)
    pairs = sorted(
        (
            (reach, k, number)
            for k in range(len(interests_KD))
            if k == 0 or not np.array_equal(interests_KD[k], interests_KD[0])
            for reach, number in zip(reaches[k].tolist(), lists[k].tolist(), strict=True)
        ),
        reverse=True,
    )[:num_lists]
    return [
        (interest_D, [number for _, owner, number in pairs if owner == k])
        for k, interest_D in enumerate(interests_KD)
    ]


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
