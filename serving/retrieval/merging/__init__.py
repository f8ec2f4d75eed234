"""Merge policies: how the lists that K interests found become one list of candidates.

A new policy is a file beside `max_score.py`, an entry of `POLICIES`, and the value of
`re4.v1.MergePolicy` by which callers ask for it. A policy that has settings of its own, as
`category_diversity.py`, is made for each request and has no entry.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from re4.serving.retrieval.merging.max_score import MAX_SCORE
from re4.serving.retrieval.merging.policy import MergedList, MergePolicy, SearchResults
from re4.serving.retrieval.merging.quotas import ATTENTION_QUOTA, EQUAL_QUOTA
from re4.serving.retrieval.merging.round_robin import ROUND_ROBIN
from re4.serving.retrieval.merging.soft_quota import SOFT_QUOTA

POLICIES: Final[Mapping[str, MergePolicy]] = MappingProxyType(
    {policy.name: policy for policy in (MAX_SCORE, EQUAL_QUOTA, ATTENTION_QUOTA, ROUND_ROBIN, SOFT_QUOTA)}
)

__all__ = ["MAX_SCORE", "POLICIES", "MergePolicy", "MergedList", "SearchResults"]
