"""From messages to checked queries: every limit, and ids to rows.

All that is wrong with a request is found here, before any work is spent on it, and in words that name the
field, the value seen and the values allowed. Knows one version, whose ids it looks up; does no retrieval.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle.string_keys import MAX_ID_BYTES
from protos.v1 import retrieval_pb2
from re4.errors import NoUsableHistoryError, RequestError
from serving.merging.category_diversity import POOL_FACTOR, CategoryDiversity
from serving.pipeline import NO_ROWS, Query
from serving.settings import Fallback, Limits, ServerSettings
from serving.snapshot import Snapshot
from serving.term_checks import check_policy, check_terms

_FIELDS: Final = {"string": "strings", "int": "ints"}
_KINDS: Final = {"string": "strings", "int": "integers"}
_MAX_CHARACTERS: Final = MAX_ID_BYTES // 4
"""A shorter text cannot be too many bytes: a character is four at most."""


@dataclass(frozen=True, kw_only=True)
class CheckedRequest:
    """A request that can be answered from one version."""

    query: Query
    num_unknown_history_ids: int
    return_interests: bool
    num_reasons: int = 0
    """How many history items to name for each interest."""
    is_popularity_fallback: bool = False
    """Nothing in the history is usable: the answer is the most popular items, `query` is not run."""


def check_retrieve(
    request: retrieval_pb2.RetrieveRequest, snapshot: Snapshot, settings: ServerSettings
) -> CheckedRequest:
    """Check a Retrieve request.

    Raises:
        RequestError: a value out of range, or ids that cannot be this catalogue's.
        NoUsableHistoryError: no known id in the history, and the server has no fallback.
    """
    limits = settings.limits
    if not 1 <= request.num_candidates <= limits.max_num_candidates:
        raise RequestError(
            f"num_candidates is {request.num_candidates}; it must be from 1 to {limits.max_num_candidates}"
        )
    if request.num_reasons > limits.max_num_reasons:
        raise RequestError(
            f"num_reasons is {request.num_reasons}; it must be from 0 to {limits.max_num_reasons}"
        )
    merge = check_policy(request, snapshot)
    terms = check_terms(request, snapshot, limits)
    known, num_unknown = _history(request.history, snapshot, limits)
    excluded, _ = _known_rows(request.exclude, "exclude", limits.max_num_excluded_ids, snapshot)
    if request.exclude_history:
        excluded = np.concatenate([excluded, known])
    excluded_rows = np.unique(excluded) if excluded.size else NO_ROWS
    is_usable = known.size > 0
    if not is_usable and settings.fallback is Fallback.NONE:
        raise _no_usable_history(num_unknown, snapshot)
    return CheckedRequest(
        query=Query(
            history_rows_L=_newest_first(known, snapshot),
            num_candidates=request.num_candidates,
            excluded_rows=excluded_rows,
            terms=terms,
            merge=merge,
            pool_factor=POOL_FACTOR if isinstance(merge, CategoryDiversity) and merge.factor else 1,
        ),
        num_unknown_history_ids=num_unknown,
        return_interests=request.return_interests,
        num_reasons=request.num_reasons,
        is_popularity_fallback=not is_usable,
    )


def check_encode(
    request: retrieval_pb2.EncodeRequest, snapshot: Snapshot, settings: ServerSettings
) -> CheckedRequest:
    """Check an Encode request. There is no fallback: popularity has no interests.

    Raises:
        RequestError: ids that cannot be this catalogue's, or too many.
        NoUsableHistoryError: no known id in the history.
    """
    known, num_unknown = _history(request.history, snapshot, settings.limits)
    if not known.size:
        raise _no_usable_history(num_unknown, snapshot)
    return CheckedRequest(
        query=Query(history_rows_L=_newest_first(known, snapshot), num_candidates=0),
        num_unknown_history_ids=num_unknown,
        return_interests=True,
    )


def _history(ids: retrieval_pb2.ItemIds, snapshot: Snapshot, limits: Limits) -> tuple[NDArray[np.int64], int]:
    return _known_rows(ids, "history", limits.max_num_history_ids, snapshot)


def _known_rows(
    ids: retrieval_pb2.ItemIds, field: str, max_num_ids: int, snapshot: Snapshot
) -> tuple[NDArray[np.int64], int]:
    """Rows of the known ids, in the order given, and the number of the unknown ones."""
    num_strings, num_ints = len(ids.strings), len(ids.ints)
    if not num_strings and not num_ints:
        return NO_ROWS, 0
    kind = snapshot.item_ids.kind
    fits = f"this catalogue's ids are {_KINDS[kind]}: fill {field}.{_FIELDS[kind]}"
    if num_strings and num_ints:
        raise RequestError(
            f"{field} has {num_strings} ids in strings and {num_ints} in ints; only one may be filled, "
            f"and {fits}"
        )
    num_ids = num_strings + num_ints
    if (kind == "string") != bool(num_strings):
        wrong = "strings" if num_strings else "ints"
        raise RequestError(f"{field} has {num_ids} ids in {wrong}; {fits}")
    if num_ids > max_num_ids:
        raise RequestError(f"{field} has {num_ids} ids; it may have from 0 to {max_num_ids}")
    rows = (
        snapshot.item_ids.rows(_checked_strings(list(ids.strings), field))
        if num_strings
        else snapshot.item_ids.rows(list(ids.ints))
    )
    known = rows[rows >= 0]
    return known, num_ids - len(known)


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


def _newest_first(known: NDArray[np.int64], snapshot: Snapshot) -> NDArray[np.int64]:
    return known[::-1][: snapshot.manifest.model.max_history_length]


def _no_usable_history(num_unknown: int, snapshot: Snapshot) -> NoUsableHistoryError:
    found = f"none of the {num_unknown} ids in history is" if num_unknown else "history is empty, no id"
    return NoUsableHistoryError(
        f"{found} known to version {snapshot.manifest.version}; give at least one id of its catalogue, or "
        "answer such users otherwise (a server started with --fallback popular gives the most popular items)"
    )
