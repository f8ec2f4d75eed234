"""Figures of a page in words."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from re4.common.console import number_of

_COSINES = (
    (0.95, "nearly one"),
    (0.8, "very much alike"),
    (0.5, "alike"),
    (0.2, "loosely related"),
    (-0.2, "unrelated"),
)
"""Least cosine of each word."""


def cosine_in_words(cosine: float) -> str:
    """Return how alike two interests are."""
    return next((word for least, word in _COSINES if cosine >= least), "opposed")


def cosines_of(vectors_KD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each pair of interests: float32 [K, K]."""
    lengths_K = np.linalg.norm(vectors_KD, axis=1, keepdims=True)
    units_KD = vectors_KD / np.maximum(lengths_K, np.finfo(np.float32).tiny)
    return np.asarray(units_KD @ units_KD.T, np.float32)


def describe_interests(cosines_KK: NDArray[np.float32]) -> list[str]:
    """Return sentences about the interests: those that are nearly one, and the closest of the others."""
    num_interests = len(cosines_KK)
    if num_interests < 2:
        return ["The model has one interest."]
    groups = _groups(cosines_KK >= _COSINES[0][0])
    sentences = []
    for group in groups:
        if len(group) > 1:
            within = [float(cosines_KK[one, other]) for one in group for other in group if one < other]
            who = f"All {num_interests} interests" if len(group) == num_interests else _named(group)
            sentences.append(
                f"{who} are nearly one ({_span(within)}): they find the same items for this user."
            )
    apart = [
        (float(cosines_KK[one, other]), one, other)
        for place, group in enumerate(groups)
        for one in group
        for later in groups[place + 1 :]
        for other in later
    ]
    if apart:
        cosine, one, other = max(apart)
        which = "The closest of the others" if sentences else "The closest two interests"
        sentences.append(f"{which} are {one} and {other}: {cosine_in_words(cosine)} (cosine {cosine:.2f}).")
    return sentences


def _groups(is_near_KK: NDArray[np.bool_]) -> list[list[int]]:
    """Return the numbers in groups that are connected by near pairs, in order."""
    groups: list[list[int]] = []
    for number in range(len(is_near_KK)):
        near = [group for group in groups if is_near_KK[number, group].any()]
        groups = [group for group in groups if group not in near]
        groups.append(sorted([number, *(each for group in near for each in group)]))
    return sorted(groups)


def _named(group: Sequence[int]) -> str:
    return f"Interests {list_of([str(number) for number in group])}"


def _span(cosines: Sequence[float]) -> str:
    low, high = f"{min(cosines):.2f}", f"{max(cosines):.2f}"
    return f"cosine {low}" if low == high else f"cosines {low} to {high}"


def age_in_words(created_at: str, now: datetime | None = None) -> str:
    """Return the age of a version, such as `3 hours`."""
    try:
        made = datetime.fromisoformat(created_at)
    except ValueError:
        return "unknown"
    seconds = ((now or datetime.now(UTC)) - made).total_seconds()
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            return f"{number_of(int(seconds // length), unit)}"
    return "less than a minute"


def list_of(words: Sequence[str]) -> str:
    """Return words as a list with `and`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
