"""From messages to checked requests: every limit.

All that is wrong with a request is found here, before any work is spent on it, and in words that name the
field, the value seen and the values allowed. Knows one version; looks nothing up.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from re4.bundle.ids.string_keys import MAX_ID_BYTES
from re4.common.errors import RequestError
from re4.protos.v1 import retrieval_pb2
from re4.serving.api.option_checks import check_policy, check_terms
from re4.serving.retrieval.filtered_search import SearchTerms
from re4.serving.retrieval.merging import MergePolicy
from re4.serving.retrieval.merging.category_diversity import POOL_FACTOR, CategoryDiversity
from re4.serving.settings import Limits
from re4.serving.versions.snapshot import Snapshot

Ids: TypeAlias = Sequence[str] | Sequence[int]
"""Of the catalogue's kind."""

_FIELDS: Final = {"string": "strings", "int": "ints"}
_KINDS: Final = {"string": "strings", "int": "integers"}
_MAX_CHARACTERS: Final = MAX_ID_BYTES // 4
"""A shorter text cannot be too many bytes: a character is four at most."""


class CheckedRequest(NamedTuple):
    """A request that one version can answer, if it knows any of the history; ids are yet to be looked up."""

    history_ids: Ids
    """Oldest first."""
    num_candidates: int
    """0 for the interests alone."""
    excluded_ids: Ids = ()
    exclude_history: bool = False
    terms: SearchTerms | None = None
    merge: MergePolicy | None = None
    pool_factor: int = 1
    """As for a `Query`."""
    return_interests: bool = False
    num_reasons: int = 0
    """How many history items to name for each interest."""

    @property
    def search_depth(self) -> int:
        """How many results each interest must find, at most; 0 for none."""
        if not self.num_candidates:
            return 0
        num_excluded = len(self.excluded_ids) + (len(self.history_ids) if self.exclude_history else 0)
        return self.num_candidates * self.pool_factor + num_excluded


def check_retrieve(
    request: retrieval_pb2.RetrieveRequest, snapshot: Snapshot, limits: Limits
) -> CheckedRequest:
    """Check a Retrieve request.

    Raises:
        RequestError: a value out of range, or ids that cannot be this catalogue's.
    """
    if not 1 <= request.num_candidates <= limits.max_num_candidates:
        raise RequestError(
            f"num_candidates is {request.num_candidates}; it must be from 1 to {limits.max_num_candidates}"
        )
    if request.num_reasons > limits.max_num_reasons:
        raise RequestError(
            f"num_reasons is {request.num_reasons}; it must be from 0 to {limits.max_num_reasons}"
        )
    merge = check_policy(request, snapshot)
    return CheckedRequest(
        history_ids=_ids(request.history, "history", limits.max_num_history_ids, snapshot),
        num_candidates=request.num_candidates,
        excluded_ids=_ids(request.exclude, "exclude", limits.max_num_excluded_ids, snapshot),
        exclude_history=request.exclude_history,
        terms=check_terms(request, snapshot, limits),
        merge=merge,
        pool_factor=POOL_FACTOR if isinstance(merge, CategoryDiversity) and merge.factor else 1,
        return_interests=request.return_interests,
        num_reasons=request.num_reasons,
    )


def check_encode(request: retrieval_pb2.EncodeRequest, snapshot: Snapshot, limits: Limits) -> CheckedRequest:
    """Check an Encode request.

    Raises:
        RequestError: ids that cannot be this catalogue's, or too many.
    """
    ids = _ids(request.history, "history", limits.max_num_history_ids, snapshot)
    return CheckedRequest(history_ids=ids, num_candidates=0, return_interests=True)


def _ids(ids: retrieval_pb2.ItemIds, field: str, max_num_ids: int, snapshot: Snapshot) -> Ids:
    """The ids in the field that fits the catalogue."""
    strings, ints = ids.strings, ids.ints
    num_ids = len(strings) + len(ints)
    if not num_ids:
        return ()
    kind = snapshot.item_ids.kind
    if ints if kind == "string" else strings:
        fits = f"this catalogue's ids are {_KINDS[kind]}: fill {field}.{_FIELDS[kind]}"
        if strings and ints:
            raise RequestError(
                f"{field} has {len(strings)} ids in strings and {len(ints)} in ints; only one may be filled, "
                f"and {fits}"
            )
        raise RequestError(f"{field} has {num_ids} ids in {'strings' if strings else 'ints'}; {fits}")
    if num_ids > max_num_ids:
        raise RequestError(f"{field} has {num_ids} ids; it may have from 0 to {max_num_ids}")
    return _checked_strings(list(strings), field) if kind == "string" else list(ints)


def _checked_strings(ids: list[str], field: str) -> list[str]:
    if min(map(len, ids)) > 0 and max(map(len, ids)) <= _MAX_CHARACTERS:
        return ids
    for place, text in enumerate(ids):
        num_bytes = len(text.encode())
        if not 1 <= num_bytes <= MAX_ID_BYTES:
            raise RequestError(
                f"{field}.strings[{place}] is {num_bytes} bytes of UTF-8; an id has from 1 to {MAX_ID_BYTES}"
            )
    return ids
