"""Hints about filters whose values no item has."""

from collections.abc import Sequence
from typing import Protocol

from re4.serving.client.values import AttributeFilter

_NUM_NEAR = 5


class ValueLists(Protocol):
    """A client or a `Retriever`."""

    def list_values(self, attribute: str, *, like: str = "", num_values: int = 20) -> dict[str, int]:
        """Return values of an attribute with their numbers of items."""


def hints_about(filters: Sequence[AttributeFilter], source: ValueLists) -> list[str]:
    """Return a sentence for each kept value that no item has: the values that are most like it.

    Raises:
        RequestError, ServerError: the values cannot be read.
    """
    hints = []
    for condition in filters:
        if condition.drop:
            continue
        for value in condition.values:
            near = list(source.list_values(condition.attribute, like=value, num_values=_NUM_NEAR))
            if value in near:
                continue
            usual = list(source.list_values(condition.attribute, num_values=_NUM_NEAR))
            like = f"the nearest are {', '.join(near)}" if near else f"values are such as {', '.join(usual)}"
            hints.append(f"No item has {condition.attribute} = {value}; {like}.")
    return hints
