"""Names of merge policies: `max-score` is `MERGE_POLICY_MAX_SCORE` in the contract."""

from typing import Final

from re4.protos.v1 import retrieval_pb2

_PREFIX: Final = "MERGE_POLICY_"


def enum_name(policy: str) -> str:
    """Return the name of a policy's value in `re4.v1.MergePolicy`."""
    return _PREFIX + policy.upper().replace("-", "_")


def policy_names() -> list[str]:
    """Return the names of the policies of the contract."""
    values = retrieval_pb2.DESCRIPTOR.enum_types_by_name["MergePolicy"].values
    return [value.name.removeprefix(_PREFIX).lower().replace("_", "-") for value in values if value.number]
