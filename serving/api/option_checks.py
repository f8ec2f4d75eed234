"""What a request says about its search beyond history and number, checked: filters, effort, diversity.

All that is wrong is found here, in words that name the field, the value seen and the values allowed.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from re4.bundle.attributes.reader import Attribute
from re4.common.errors import RequestError
from re4.protos.v1 import retrieval_pb2
from re4.serving.protocol.policy_names import enum_name
from re4.serving.retrieval.filtered_search import SearchTerms
from re4.serving.retrieval.filters import Condition
from re4.serving.retrieval.merging import POLICIES, MergePolicy
from re4.serving.retrieval.merging.category_diversity import CategoryDiversity
from re4.serving.settings import Limits
from re4.serving.versions.snapshot import Snapshot

POLICY_OF: Final[Mapping[int, MergePolicy]] = MappingProxyType(
    {retrieval_pb2.MergePolicy.Value(enum_name(name)): merge for name, merge in POLICIES.items()}
)
"""The policies that need nothing but their name, by the request's value."""

_DIVERSITY: Final = retrieval_pb2.MERGE_POLICY_CATEGORY_DIVERSITY


def check_terms(
    request: retrieval_pb2.RetrieveRequest, snapshot: Snapshot, limits: Limits
) -> SearchTerms | None:
    """How the request's search differs from the usual one; None where it does not.

    Raises:
        RequestError: an unknown attribute, too many filters or values, or an effort out of range.
    """
    effort, filters = request.search_effort, request.filters
    if not effort and not filters:
        return None
    if effort and not limits.min_search_effort <= effort <= limits.max_search_effort:
        raise RequestError(
            f"search_effort is {effort:g}; it must be from {limits.min_search_effort:g} to "
            f"{limits.max_search_effort:g}, or 0 for the default"
        )
    if len(filters) > limits.max_num_filters:
        raise RequestError(
            f"filters has {len(filters)} filters; it may have from 0 to {limits.max_num_filters}"
        )
    num_values = sum(len(each.values) for each in filters)
    if num_values > limits.max_num_filter_values:
        raise RequestError(
            f"filters has {num_values} values; it may have from 0 to {limits.max_num_filter_values}"
        )
    conditions = {_condition(each, f"filters[{place}]", snapshot) for place, each in enumerate(filters)}
    # An exact index has nothing to set: whatever the effort, its searches share a call.
    if not effort or not snapshot.manifest.index.search_parameters:
        effort = 1.0
    if not conditions and effort == 1:
        return None
    in_one_order = sorted(conditions, key=lambda each: (each.attribute, each.is_drop, each.codes))
    return SearchTerms(tuple(in_one_order), effort)


def check_policy(request: retrieval_pb2.RetrieveRequest, snapshot: Snapshot) -> MergePolicy | None:
    """The merge policy that the request asks for; None for the server's own choice.

    Raises:
        RequestError: there is no such policy, or what it needs is missing or wrong.
    """
    policy = request.merge_policy
    if policy == _DIVERSITY:
        if not 0 <= request.diversity < math.inf:
            raise RequestError(f"diversity is {request.diversity:g}; it must be 0 or more, and finite")
        category = _attribute(request.diversity_attribute, "diversity_attribute", snapshot)
        return CategoryDiversity(category=category, factor=request.diversity)
    if request.diversity or request.diversity_attribute:
        raise RequestError(
            f"diversity is {request.diversity:g}, diversity_attribute is {request.diversity_attribute!r}, "
            f"and merge_policy is {policy}; those two go with {_DIVERSITY} (category-diversity) alone"
        )
    if not policy:
        return None
    if policy not in POLICY_OF:
        raise RequestError(
            f"merge_policy is {policy}; it must be from 0 to {max(*POLICY_OF, _DIVERSITY)}: "
            f"the server's choice, {', '.join(POLICIES)}, category-diversity"
        )
    return POLICY_OF[policy]


def _condition(asked: retrieval_pb2.AttributeFilter, field: str, snapshot: Snapshot) -> Condition:
    attribute = _attribute(asked.attribute, f"{field}.attribute", snapshot)
    if not asked.values:
        raise RequestError(f"{field}.values is empty; give at least one value of {attribute.name!r}")
    codes = {int(code) for code in attribute.value_codes(asked.values)} - {-1}
    return Condition(attribute.name, tuple(sorted(codes)), asked.drop)


def _attribute(name: str, field: str, snapshot: Snapshot) -> Attribute:
    attributes = snapshot.attributes
    if name not in attributes:
        known = f"has {', '.join(attributes.names)}" if attributes.names else "has no attributes"
        raise RequestError(f"{field} is {name[:200]!r}; version {snapshot.manifest.version} {known}")
    return attributes[name]
