"""One part of a bulk job: the candidates of some users, as a table.

    user_id             as it came
    item_ids            list of texts or integers, best first
    scores              list of float32
    interests           list of uint16: the interest that found each candidate
    is_new              list of booleans; only with an exploration quota
    interest_vectors    list of float32, all interests one after another; only where asked for
    num_unknown_history_ids, is_popularity_fallback
    error               why a user has no candidates, else null

Legend: U users, M candidates, D embedding.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from time import time
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.bulk.users import USER_ID, UserRows, to_lists
from re4.bundle.ids.string_keys import MAX_ID_BYTES
from re4.common.errors import DataError, IndexUnavailableError, Re4Error, RequestError
from re4.serving.api.batch_handler import FoundBatch, find_candidates
from re4.serving.api.history_calls import with_stored_items
from re4.serving.api.validation import CheckedRequest, checked_strings
from re4.serving.histories.store import HistoryStore, Item
from re4.serving.retrieval.merging import MergedList
from re4.serving.retrieval.pipeline import QueryResult
from re4.serving.settings import Fallback

_TYPES: Final[Mapping[str, Any]] = {"string": pl.String, "int": pl.Int64}
_LOOK_UP_USERS: Final = 256
"""Users of one look-up in the store of histories."""
_NO_VECTORS: Final = np.zeros(0, np.float32)


class PartTable:
    """Collects the answers of a part, user by user."""

    def __init__(self, request: CheckedRequest) -> None:
        self._request = request
        self._rows: list[NDArray[np.int64]] = []
        self._scores: list[NDArray[np.float32]] = []
        self._numbers: list[NDArray[np.int64]] = []
        self._marks: list[NDArray[np.bool_]] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._nums_unknown: list[int] = []
        self._are_popular: list[bool] = []
        self._errors: list[str | None] = []

    def add(
        self,
        result: QueryResult | Re4Error | None,
        merged: MergedList = MergedList(),  # noqa: B008  # a tuple of constants
        num_unknown: int = 0,
        is_new_M: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add one user, with the values of `FoundBatch`; None as a result is the popularity fallback."""
        self._rows.append(merged.rows_M)
        self._scores.append(merged.scores_M)
        self._numbers.append(merged.interest_numbers_M)
        self._errors.append(str(result) if isinstance(result, Re4Error) else None)
        self._are_popular.append(result is None)
        self._nums_unknown.append(num_unknown)
        if self._request.return_interests:
            self._vectors.append(result.interests_KD if isinstance(result, QueryResult) else _NO_VECTORS)
        if self._request.num_new_items:
            self._marks.append(np.zeros(len(merged.rows_M), np.bool_) if is_new_M is None else is_new_M)

    def to_frame(self, user_ids: pl.Series) -> pl.DataFrame:
        """Return the table of these users, in the order in which they were added."""
        lengths_U = np.array([len(rows) for rows in self._rows], np.int64)
        columns = {
            USER_ID: user_ids,
            "item_ids": to_lists(self._ids(np.concatenate(self._rows)), lengths_U),
            "scores": to_lists(pl.Series(np.concatenate(self._scores)), lengths_U),
            "interests": to_lists(pl.Series(np.concatenate(self._numbers).astype(np.uint16)), lengths_U),
        }
        if self._request.num_new_items:
            columns["is_new"] = to_lists(pl.Series(np.concatenate(self._marks)), lengths_U)
        if self._request.return_interests:
            vectors = [each.reshape(-1) for each in self._vectors]
            columns["interest_vectors"] = to_lists(
                pl.Series(np.concatenate(vectors)), np.array([len(each) for each in vectors], np.int64)
            )
        return pl.DataFrame(
            columns
            | {
                "num_unknown_history_ids": pl.Series(self._nums_unknown, dtype=pl.Int32),
                "is_popularity_fallback": pl.Series(self._are_popular, dtype=pl.Boolean),
                "error": pl.Series(self._errors, dtype=pl.String),
            }
        )

    def _ids(self, rows: NDArray[np.int64]) -> pl.Series:
        """Return the ids of rows: each row is looked up once."""
        item_ids = self._request.snapshot.item_ids
        place_of = np.zeros(1 + int(rows.max(initial=-1)), np.uint32)
        place_of[rows] = 1
        unique = np.flatnonzero(place_of)
        place_of[unique] = np.arange(len(unique))
        return pl.Series(item_ids.ids(unique), dtype=_TYPES[item_ids.kind]).gather(place_of[rows])


def answer_part(
    users: UserRows, request: CheckedRequest, store: HistoryStore | None, fallback: Fallback, batch_size: int
) -> pl.DataFrame:
    """Return the table of some users.

    Args:
        users: At least one.
        request: The request of a user without ids, checked; the users give the ids.
        store: Holds the events that come before the ids of a user's history; None for none.
        fallback: The answer to users of whom no history item is known.
        batch_size: Users that share a run of the encoder and a search.

    Raises:
        DataError: the ids are not of the catalogue's kind.
        HistoryStoreError: the store cannot be used.
        IndexUnavailableError: the index is on another machine, which does not answer.
    """
    num_users = len(users.user_ids)
    histories = users.histories
    if store is not None:
        histories = _with_stored(users, store, request)
    history_rows, wrong = _row_lists(histories, "history", num_users, request)
    excluded_rows, also_wrong = _row_lists(users.excluded, "exclude", num_users, request)
    errors = also_wrong | wrong
    table = PartTable(request)
    for start in range(0, num_users, batch_size):
        places = range(start, min(start + batch_size, num_users))
        valid = [
            request._replace(history_ids=history_rows[place], excluded_ids=excluded_rows[place])
            for place in places
            if place not in errors
        ]
        found = find_candidates(valid, fallback, _same) if valid else FoundBatch([], [], [], {})
        for result in found.results:
            if isinstance(result, IndexUnavailableError):  # no answer of this user: the job goes on later
                raise result
        answers = enumerate(zip(found.results, found.merged, found.nums_unknown_history_ids, strict=True))
        for place in places:
            if place in errors:
                table.add(errors[place])
            else:
                answer, (result, merged, num_unknown) = next(answers)
                table.add(result, merged, num_unknown, found.is_new_M.get(answer))
    return table.to_frame(users.user_ids)


def _same(rows: list[Any]) -> NDArray[np.int64]:
    return np.array(rows, np.int64)


def _with_stored(users: UserRows, store: HistoryStore, request: CheckedRequest) -> pl.Series:
    """Return the histories after the stored events of their users."""
    stored: list[list[Item]] = []
    user_ids, now_ms = list(map(str, users.user_ids)), int(time() * 1e3)
    for start in range(0, len(user_ids), _LOOK_UP_USERS):
        stored += store.newest_items(user_ids[start : start + _LOOK_UP_USERS], now_ms)
    own: Any = [[]] * len(stored) if users.histories is None else users.histories.to_list()
    histories = [
        with_stored_items(request._replace(history_ids=history or ()), items).history_ids
        for history, items in zip(own, stored, strict=True)
    ]
    return pl.Series(histories, dtype=pl.List(_TYPES[request.snapshot.item_ids.kind]))


def _row_lists(
    lists: pl.Series | None, field: str, num_users: int, request: CheckedRequest
) -> tuple[Sequence[list[int]], dict[int, RequestError]]:
    """Return the rows of lists of ids, -1 for unknown ids, and the errors by user.

    Raises:
        DataError: the ids are not of the catalogue's kind.
    """
    if lists is None:
        return [[]] * num_users, {}
    snapshot = request.snapshot
    kind, lengths_U = snapshot.item_ids.kind, lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = lists.filter(lengths_U > 0).explode()
    if len(flat) and (flat.dtype == pl.String) != (kind == "string"):
        raise DataError(
            f"the column {field} holds ids such as {flat[0]!r}; those of version "
            f"{snapshot.manifest.version} are {'texts' if kind == 'string' else 'integers'}"
        )
    if not len(flat):
        return [[]] * num_users, {}
    errors: dict[int, RequestError] = {}
    if kind == "string":
        lengths = flat.str.len_bytes()
        is_wrong = ~lengths.is_between(1, MAX_ID_BYTES).fill_null(True)
        if is_wrong.any():
            for place in np.unique(np.repeat(np.arange(num_users), lengths_U)[is_wrong.to_numpy()]):
                try:
                    checked_strings(lists[int(place)].to_list(), field)
                except RequestError as error:
                    errors[int(place)] = error.with_traceback(None)
        ends_I = lengths.fill_null(0).cast(pl.Int64).cum_sum().to_numpy()
        found = snapshot.item_ids.rows_of_texts(flat.str.join().item().encode(), ends_I)
    else:
        unique = flat.unique().drop_nulls()
        known = pl.DataFrame({"id": unique, "row": snapshot.item_ids.rows(unique.to_list())})
        joined = flat.to_frame("id").join(known, on="id", how="left", maintain_order="left")
        found = joined["row"].fill_null(-1).to_numpy()
    in_order, ends = found.tolist(), np.cumsum(lengths_U).tolist()
    return [in_order[start:end] for start, end in pairwise([0, *ends])], errors
