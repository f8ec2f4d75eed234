"""Which columns of the catalogue go into a version as attributes.

A column that describes is kept, one that names is not: titles and addresses have about as many values as
there are items, and nobody filters by them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from re4.bundle.attributes.columns import MAX_VALUE_BYTES, CodedColumn
from re4.bundle.manifest import MAX_NUM_ATTRIBUTES
from re4.common.errors import ExportError
from re4.exporting.catalogue.attribute_codes import Survey, code, describes, survey
from re4.exporting.catalogue.items import ItemColumn

MIN_ITEMS_PER_VALUE: Final = 2
"""A column with fewer items to a value, on average, is a name of items rather than an attribute."""

MAX_NUM_VALUES: Final = 100_000
"""A column with more values is left out unless it is asked for."""


class Chosen(NamedTuple):
    """What was made of the catalogue's columns."""

    columns: Mapping[str, Callable[[], CodedColumn]]
    """What codes each when it is called."""
    left_out: Mapping[str, str]
    """Why, by column."""


def choose_attributes(items: Mapping[str, ItemColumn], wanted: Sequence[str] | None = None) -> Chosen:
    """Choose the columns of a catalogue that can serve as attributes.

    Texts, whole numbers, booleans and lists of those can be attributes. Without `wanted`, a column is kept
    that has at least `MIN_ITEMS_PER_VALUE` items to a value, on average, and at most `MAX_NUM_VALUES` values.

    Args:
        items: The catalogue's columns.
        wanted: Names of the columns to keep, whatever their values are; None to choose.

    Raises:
        ExportError: a wanted column is missing, has no value, or cannot be an attribute.
    """
    if missing := [name for name in wanted or () if name not in items]:
        raise ExportError(
            f"the catalogue has no column {', '.join(map(repr, missing))} to make an attribute of; it has "
            f"{', '.join(map(repr, items)) or 'none beside the ids'}"
        )
    columns: dict[str, Callable[[], CodedColumn]] = {}
    left_out: dict[str, str] = {}
    for name in items if wanted is None else dict.fromkeys(wanted):
        found = _survey(items[name], is_wanted=wanted is not None)
        reason = found if isinstance(found, str) else None
        if reason is None and len(columns) == MAX_NUM_ATTRIBUTES:
            reason = f"a version holds {MAX_NUM_ATTRIBUTES} attributes"
        if isinstance(found, Survey) and reason is None:
            columns[name] = partial(code, items[name], found.values)
        elif wanted is None:
            left_out[name] = str(reason)
        else:
            raise ExportError(f"column {name!r} cannot be an attribute: {reason}")
    return Chosen(columns, left_out)


def _survey(column: ItemColumn, *, is_wanted: bool) -> Survey | str:
    """The values of a column, or why it is no attribute."""
    if not describes(column.kind):
        return f"it holds {column.kind}, not texts, whole numbers, booleans or lists of those"
    found = survey(column, max_values=None if is_wanted else MAX_NUM_VALUES)
    num_values = len(found.values)
    if not num_values:
        return "no item has a value"
    if found.longest > MAX_VALUE_BYTES:
        return f"a value of {found.longest} bytes, at most {MAX_VALUE_BYTES} are allowed"
    if not is_wanted and num_values > MAX_NUM_VALUES:
        return f"more than {MAX_NUM_VALUES:,} different values"
    if not is_wanted and found.num_entries < MIN_ITEMS_PER_VALUE * num_values:
        return f"{num_values:,} different values for {found.num_entries:,} entries: it names items"
    return found
