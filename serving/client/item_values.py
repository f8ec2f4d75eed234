"""Changes of items: what callers give and get, and the conversion to and from messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from re4.common.attribute_values import VALUE_TYPES, AttributeValue, value_text
from re4.common.errors import RequestError
from re4.protos.v1 import retrieval_pb2
from re4.serving.client.values import ids_message, request_of


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveItem:
    """An item to add, or to replace all facts of."""

    item_id: str | int
    """As in the event log."""
    attributes: Mapping[str, AttributeValue | Sequence[AttributeValue] | None] = field(default_factory=dict)
    """One value or several by name; all become their text: `7`, `12.5`, `true`, `2026-01-31`."""
    vector: Sequence[float] | NDArray[np.floating] | None = None
    """In the embedding space of the live version; None for the trained vector of a known item, and for one
    from the attributes of a new item."""


@dataclass(frozen=True, kw_only=True)
class EditedItems:
    """A durable change of items."""

    sequence: int
    """Answers show the change where `live_sequence` of `info` is at least this number."""
    version: str
    """The bundle version of the server that answered."""
    num_unknown: int
    """Removed ids that the server does not know; 0 after an upsert."""


def upsert_request(items: Sequence[LiveItem]) -> retrieval_pb2.UpsertItemsRequest:
    """Return the request of UpsertItems.

    Raises:
        RequestError: a value that no request can carry.
    """
    return request_of(lambda: retrieval_pb2.UpsertItemsRequest(items=map(_live_item, items)))


def remove_request(ids: Sequence[str] | Sequence[int]) -> retrieval_pb2.RemoveItemsRequest:
    """Return the request of RemoveItems.

    Raises:
        RequestError: ids that are neither all strings nor all integers.
    """
    return request_of(lambda: retrieval_pb2.RemoveItemsRequest(items=ids_message(ids, "items")))


def to_edited(reply: retrieval_pb2.EditItemsReply) -> EditedItems:
    """Convert a reply of UpsertItems or RemoveItems."""
    return EditedItems(sequence=reply.sequence, version=reply.version, num_unknown=reply.num_unknown)


def _live_item(item: LiveItem) -> retrieval_pb2.LiveItem:
    id_ = item.item_id.item() if isinstance(item.item_id, np.generic) else item.item_id
    if isinstance(id_, bool) or not isinstance(id_, str | int):
        raise RequestError(f"item_id is {id_!r:.60}; an id is a str or an int, as the catalogue has it")
    return retrieval_pb2.LiveItem(
        **{"string_id" if isinstance(id_, str) else "int_id": id_},  # type: ignore[arg-type]  # its own kind
        attributes=[
            retrieval_pb2.AttributeValues(name=name, values=texts)
            for name, value in item.attributes.items()
            if (texts := _texts(name, value))
        ],
        vector=() if item.vector is None else np.asarray(item.vector, np.float32).tolist(),
    )


def _texts(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    texts = []
    for each in values:
        try:
            text = value_text(each)
        except TypeError as error:
            raise RequestError(f"attribute {name!r:.60}: {error}; values are {VALUE_TYPES}") from None
        if text is not None:
            texts.append(text)
    return texts
