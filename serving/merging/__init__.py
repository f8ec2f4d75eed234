"""Merge policies: how the lists that K interests found become one list of candidates.

A new policy is a file beside `max_score.py` and one line in `POLICIES`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from serving.merging.max_score import merge_max_score
from serving.merging.policy import Merged, MergePolicy

POLICIES: Final[Mapping[str, MergePolicy]] = MappingProxyType(
    {
        "max-score": merge_max_score,
    }
)

__all__ = ["POLICIES", "MergePolicy", "Merged"]
