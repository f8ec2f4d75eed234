"""The calls that read the catalogue: GetItems, FindItems and ListValues.

They are for people, not for hot paths. A step of each takes about a millisecond at most: the service takes
the steps with turns of the event loop between them.
"""

from collections.abc import Generator, Iterable, Iterator
from difflib import SequenceMatcher
from itertools import islice
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attribute
from re4.bundle.titles import CHUNK_TITLES
from re4.common.errors import RequestError
from re4.protos.v1 import retrieval_pb2
from re4.serving.api.validation import check_attribute, check_filters, check_ids
from re4.serving.retrieval.filters import AllowedItems, Condition
from re4.serving.settings import Limits
from re4.serving.versions.snapshot import Snapshot

MAX_NUM_VALUES: Final = 1_000
"""Of a ListValues."""
MAX_TEXT: Final = 200
"""Characters of a text to look for."""
_MAX_MATCHES: Final = 2_000
"""Titles after which a search ends, before they are put in order."""
_CHUNK_ITEMS: Final = 64
_CHUNK_VALUES: Final = 256
_MAX_COMPARED: Final = 20_000
"""Values up to which all of them are compared with a text letter by letter."""
_MIN_RATIO: Final = 0.5
"""Least similarity of two texts, as `difflib` measures it."""

_ReplyT = TypeVar("_ReplyT")
Steps: TypeAlias = Generator[None, None, _ReplyT]
"""The steps of a call; its reply is their return value."""


def finish(steps: Steps[_ReplyT]) -> _ReplyT:
    """Take all steps at once, and return the reply."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            reply: _ReplyT = end.value
            return reply


def get_items(
    request: retrieval_pb2.GetItemsRequest, snapshot: Snapshot, limits: Limits
) -> Steps[retrieval_pb2.GetItemsReply]:
    """Answer GetItems.

    Raises:
        RequestError: no ids, too many, or ids that cannot be this catalogue's.
    """
    ids = check_ids(request.items, "items", limits.max_num_candidates, snapshot)
    if not ids:
        raise RequestError("items is empty; give at least one id")
    reply = retrieval_pb2.GetItemsReply(version=snapshot.manifest.version)
    rows = snapshot.item_ids.rows(ids)
    for start in range(0, len(rows), _CHUNK_ITEMS):
        reply.items.extend(_items(rows[start : start + _CHUNK_ITEMS], snapshot, request.return_vectors))
        yield
    return reply


def find_items(
    request: retrieval_pb2.FindItemsRequest, snapshot: Snapshot, limits: Limits
) -> Steps[retrieval_pb2.FindItemsReply]:
    """Answer FindItems.

    Raises:
        RequestError: a value out of range, or an unknown attribute.
    """
    text = _checked_text(request.text, "text")
    if not 1 <= request.num_items <= limits.max_num_candidates:
        raise RequestError(
            f"num_items is {request.num_items}; it must be from 1 to {limits.max_num_candidates}"
        )
    conditions = check_filters(request.filters, snapshot, limits)
    allowed = _allowed(conditions, snapshot)
    if text:
        rows: list[int] = []
        for found in _matches(text, snapshot):
            rows += found.tolist() if allowed is None else found[allowed.contains(found)].tolist()
            if len(rows) > _MAX_MATCHES:
                break
            yield
        rows = _in_order(rows, text, snapshot)
        row = _row_of_id(text, snapshot)
        if row >= 0 and (allowed is None or allowed.contains(np.array([row]))[0]):
            rows = [row, *(each for each in rows if each != row)]
    else:
        rows = list(islice(_popular_first(allowed, snapshot), request.num_items + 1))
    ids: Any = snapshot.item_ids.ids(np.array(rows[: request.num_items], np.int64)) if rows else []
    items = (
        retrieval_pb2.ItemIds(strings=ids)
        if snapshot.item_ids.kind == "string"
        else retrieval_pb2.ItemIds(ints=ids)
    )
    return retrieval_pb2.FindItemsReply(
        items=items, version=snapshot.manifest.version, has_more=len(rows) > request.num_items
    )


def list_values(
    request: retrieval_pb2.ListValuesRequest, snapshot: Snapshot
) -> Steps[retrieval_pb2.ListValuesReply]:
    """Answer ListValues.

    Raises:
        RequestError: a value out of range, or an unknown attribute.
    """
    check_attribute(request.attribute, "attribute", snapshot)
    attribute = (snapshot.loaded or snapshot).attributes[request.attribute]  # live values have no counts
    like = _checked_text(request.like, "like")
    if not 1 <= request.num_values <= MAX_NUM_VALUES:
        raise RequestError(f"num_values is {request.num_values}; it must be from 1 to {MAX_NUM_VALUES}")
    counts_V = attribute.counts()
    if not like:
        codes = np.argsort(-counts_V, kind="stable")[: request.num_values].tolist()
    else:
        ranked: list[tuple[float, int, int]] = []
        for start in range(0, attribute.num_values, _CHUNK_VALUES):
            stop = min(start + _CHUNK_VALUES, attribute.num_values)
            ranked += _likeness(attribute, range(start, stop), like, counts_V)
            ranked = sorted(ranked)[: request.num_values]
            yield
        codes = [code for _, _, code in ranked]
    return retrieval_pb2.ListValuesReply(
        values=[attribute.value(code) for code in codes],
        num_items=counts_V[codes].tolist(),
        version=snapshot.manifest.version,
    )


def _checked_text(text: str, field: str) -> str:
    if len(text) > MAX_TEXT:
        raise RequestError(f"{field} has {len(text)} characters; it may have from 0 to {MAX_TEXT}")
    return " ".join(text.casefold().split())


def _items(rows: NDArray[np.int64], snapshot: Snapshot, return_vectors: bool) -> Iterator[retrieval_pb2.Item]:
    """Yield the items of rows, -1 for an unknown one."""
    known = rows[rows >= 0]
    vectors = iter(snapshot.vectors_of(known).tolist() if return_vectors else ())
    values = {name: iter(_values_of(snapshot.attributes[name], known)) for name in snapshot.attributes.names}
    num_items, hidden, live = snapshot.manifest.items.num_items, snapshot.hidden, snapshot.live
    for row in rows.tolist():
        if row < 0:
            yield retrieval_pb2.Item()
            continue
        is_live = row >= num_items
        if is_live:
            assert live is not None
            is_hidden = not live.is_visible_R[row - live.first_row]
        else:
            is_hidden = hidden is not None and bool(hidden.mask_N[row])
            is_hidden |= live is not None and live.replaced_N is not None and bool(live.replaced_N[row])
        yield retrieval_pb2.Item(
            is_known=True,
            title=snapshot.title_of(row),
            attributes=[
                retrieval_pb2.AttributeValues(name=name, values=texts)
                for name, column in values.items()
                if (texts := next(column))
            ],
            vector=next(vectors, ()),
            is_hidden=is_hidden,
            is_live=is_live,
        )


def _values_of(attribute: Attribute, rows: NDArray[np.int64]) -> list[list[str]]:
    """Return the values of each row."""
    codes, lengths = attribute.codes_of(rows)
    missing = attribute.num_values  # the code of a row without a value
    if lengths is None:
        return [[] if code == missing else [attribute.value(code)] for code in codes.tolist()]
    each = iter(codes.tolist())
    return [[attribute.value(code) for code in islice(each, length)] for length in lengths.tolist()]


def _allowed(conditions: set[Condition], snapshot: Snapshot) -> AllowedItems | None:
    """Return the items that meet all conditions; None where there is none."""
    if not conditions:
        return None
    in_order = sorted(conditions, key=lambda each: (each.attribute, each.is_drop, each.codes))
    return snapshot.filter_cache.allowed_by(tuple(in_order))


def _matches(text: str, snapshot: Snapshot) -> Iterator[NDArray[np.int64]]:
    """Yield the rows whose titles contain all words, a chunk of titles at a time."""
    words = sorted(text.split(), key=len, reverse=True)

    def is_match(title: str) -> bool:
        folded = title.casefold()
        return all(word in folded for word in words)

    titles, live = snapshot.titles, snapshot.live
    for start, joined in () if titles is None else titles.chunks():
        assert titles is not None
        rows = range(start, start + titles.num_in_chunk(start)) if is_match(joined) else ()
        found = np.array([row for row in rows if is_match(titles.title(row))], np.int64)
        yield _present(found, snapshot, with_new_titles=False)
    if live is not None and live.has_titles:
        for start in range(0, len(live.is_visible_R), CHUNK_TITLES):
            slots = start + np.flatnonzero(live.is_visible_R[start : start + CHUNK_TITLES])
            matches = [slot for slot in slots.tolist() if is_match(live.titles[slot])]
            yield live.first_row + np.array(matches, np.int64)


def _present(
    rows: NDArray[np.int64], snapshot: Snapshot, *, with_new_titles: bool = True
) -> NDArray[np.int64]:
    """Return rows of the version, with the rows of live items in place of those that they replace.

    Args:
        rows: Rows of the version.
        snapshot: The version, with its live items.
        with_new_titles: Whether to keep those that came with a title of their own.
    """
    live = snapshot.live
    if live is None or live.replaced_N is None or not (is_replaced := live.replaced_N[rows]).any():
        return rows
    loaded: Any = (snapshot.loaded or snapshot).item_ids
    rows = rows.copy()
    rows[is_replaced] = live.item_ids.rows(loaded.ids(rows[is_replaced]))
    if with_new_titles:
        return rows
    kept = [row for row in rows.tolist() if row < live.first_row or not live.titles[row - live.first_row]]
    return np.array(kept, np.int64)


def _in_order(rows: list[int], text: str, snapshot: Snapshot) -> list[int]:
    """Return rows whose titles begin with the text first, then popular ones, then by row."""
    if len(rows) < 2:
        return rows
    wanted = set(rows)
    places = {row: place for place, row in enumerate(snapshot.popular_rows.tolist()) if row in wanted}
    last = len(snapshot.popular_rows)
    return sorted(
        rows,
        key=lambda row: (not snapshot.title_of(row).casefold().startswith(text), places.get(row, last), row),
    )


def _row_of_id(text: str, snapshot: Snapshot) -> int:
    """Return the row of the item whose id is the text; -1 where there is none."""
    ids: list[Any] = [text]
    if snapshot.item_ids.kind == "int":
        try:
            ids = [int(text)]
        except ValueError:
            return -1
        if not -(1 << 63) <= ids[0] < 1 << 63:
            return -1
    return int(snapshot.item_ids.rows(ids)[0])


def _popular_first(allowed: AllowedItems | None, snapshot: Snapshot) -> Iterator[int]:
    popular = _present(snapshot.popular_rows, snapshot)
    if allowed is not None:
        popular = popular[allowed.contains(popular)]
    seen = set(popular.tolist())
    yield from popular.tolist()
    rows: Iterable[int] = _all_rows(snapshot) if allowed is None else allowed.rows().tolist()
    yield from (row for row in rows if row not in seen)


def _all_rows(snapshot: Snapshot) -> Iterator[int]:
    """Yield the rows of all items once: those of the version, then those that only live items have."""
    num_items = snapshot.manifest.items.num_items
    of_version: list[int] = []
    for start in range(0, num_items, CHUNK_TITLES):
        rows = np.arange(start, min(start + CHUNK_TITLES, num_items))
        present = _present(rows, snapshot).tolist()
        of_version += [row for row in present if row >= num_items]
        yield from present
    if snapshot.live is not None:
        replaced = set(of_version)
        yield from (row for row in snapshot.live.visible_rows().tolist() if row not in replaced)


def _likeness(
    attribute: Attribute, codes: range, like: str, counts_V: NDArray[np.int64]
) -> Iterator[tuple[float, int, int]]:
    """Yield distance, negative count and code of the values that are like a text."""
    number = _number(like)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(like)
    compares = attribute.num_values <= _MAX_COMPARED
    for code in codes:
        value = attribute.value(code).casefold()
        other = None if number is None else _number(value)
        if value == like:
            distance = 0.0
        elif number is not None and other is not None:
            distance = 1 + abs(other - number)
        elif value.startswith(like):
            distance = 1.0
        elif like in value:
            distance = 2.0
        elif compares:
            matcher.set_seq1(value)
            if matcher.real_quick_ratio() < _MIN_RATIO or matcher.quick_ratio() < _MIN_RATIO:
                continue
            if (ratio := matcher.ratio()) < _MIN_RATIO:
                continue
            distance = 4 - ratio
        else:
            continue
        yield distance, -int(counts_V[code]), code


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
