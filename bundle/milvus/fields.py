"""The fields of a collection: row, vector, and the attributes that filters need."""

from typing import Final

ROW: Final = "row"
"""Primary key: the item's row in the version."""
VECTOR: Final = "vector"

NO_VALUE: Final = -1
"""Code of an item without a value of an attribute with one value for each item."""
MAX_FIELDS: Final = 62
"""Milvus's most fields of a collection, without row and vector. Later attributes have none: filters by them
are applied to the search results."""
MAX_VALUES_OF_ITEM: Final = 4_096
"""Longest array that Milvus stores. An attribute with a longer one has no field."""


def code_field(place: int) -> str:
    """Return the field with the codes of the attribute at a position of the manifest's list."""
    return f"attribute_{place}"


def position_field(place: int) -> str:
    """Return the field with the numbers or dates of such an attribute, for ranges."""
    return f"attribute_{place}_position"
