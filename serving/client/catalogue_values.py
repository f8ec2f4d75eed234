"""Items of the catalogue as callers see them, and the conversion to and from messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from re4.protos.v1 import retrieval_pb2
from re4.serving.client.values import (
    AttributeFilter,
    ItemIdList,
    filter_messages,
    ids_message,
    request_of,
    to_ids,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogueItem:
    """An item as the live version knows it."""

    item_id: str | int
    """As it was requested."""
    is_known: bool
    """Whether the version knows the id; all else is empty where not."""
    title: str
    """Empty where the catalogue has no title of the item."""
    attributes: Mapping[str, Sequence[str]]
    """The item's values by attribute, as texts; attributes without a value are left out."""
    vector: NDArray[np.float32] | None
    """The item's vector, if `return_vectors` was set."""
    is_hidden: bool
    """Whether no answer may contain the item."""
    is_live: bool
    """Whether the item was added or changed since the version was made."""


def get_items_request(
    ids: Sequence[str] | Sequence[int], *, return_vectors: bool
) -> retrieval_pb2.GetItemsRequest:
    """Return the request of GetItems.

    Raises:
        RequestError: ids that are neither all strings nor all integers.
    """
    return request_of(
        lambda: retrieval_pb2.GetItemsRequest(
            items=ids_message(ids, "item_ids"), return_vectors=return_vectors
        )
    )


def to_items(ids: Sequence[str] | Sequence[int], reply: retrieval_pb2.GetItemsReply) -> list[CatalogueItem]:
    """Convert a reply of GetItems."""
    requested: Sequence[str | int] = ids
    return [
        CatalogueItem(
            item_id=id_,
            is_known=item.is_known,
            title=item.title,
            attributes={each.name: list(each.values) for each in item.attributes},
            vector=np.array(item.vector, np.float32) if item.vector else None,
            is_hidden=item.is_hidden,
            is_live=item.is_live,
        )
        for id_, item in zip(requested, reply.items, strict=True)
    ]


def find_items_request(
    text: str, filters: Sequence[AttributeFilter], num_items: int
) -> retrieval_pb2.FindItemsRequest:
    """Return the request of FindItems.

    Raises:
        RequestError: a value that no request can carry.
    """
    return request_of(
        lambda: retrieval_pb2.FindItemsRequest(
            text=text, filters=filter_messages(filters), num_items=num_items
        )
    )


def to_found(reply: retrieval_pb2.FindItemsReply) -> ItemIdList:
    """Convert a reply of FindItems."""
    return to_ids(reply.items)


def list_values_request(attribute: str, like: str, num_values: int) -> retrieval_pb2.ListValuesRequest:
    """Return the request of ListValues.

    Raises:
        RequestError: a value that no request can carry.
    """
    return request_of(
        lambda: retrieval_pb2.ListValuesRequest(attribute=attribute, like=like, num_values=num_values)
    )


def to_values(reply: retrieval_pb2.ListValuesReply) -> dict[str, int]:
    """Convert a reply of ListValues: number of items by value, in order."""
    return dict(zip(reply.values, reply.num_items, strict=True))
