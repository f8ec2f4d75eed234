"""Merge policies: how the lists that K interests found become one list of candidates.

A new policy is a file beside `max_score.py`, one line in `POLICIES`, and the value of `re4.v1.MergePolicy` by
which callers ask for it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from re4.serving.retrieval.merging.attention_quota import merge_attention_quota
from re4.serving.retrieval.merging.equal_quota import merge_equal_quota
from re4.serving.retrieval.merging.max_score import merge_max_score
from re4.serving.retrieval.merging.policy import Merged, MergePolicy
from re4.serving.retrieval.merging.round_robin import merge_round_robin

POLICIES: Final[Mapping[str, MergePolicy]] = MappingProxyType(
    {
        "max-score": merge_max_score,
        "equal-quota": merge_equal_quota,
        "attention-quota": merge_attention_quota,
        "round-robin": merge_round_robin,
    }
)

__all__ = ["POLICIES", "MergePolicy", "Merged"]
