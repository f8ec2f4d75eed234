"""Expressions of Milvus for the conditions of a request: filters are evaluated where the index is.

Attributes are fields of the collection, by the codes of their values. A condition that Milvus cannot evaluate
is left out: the items that it does not allow are removed from the results.
"""

import math
from collections.abc import Collection, Sequence
from typing import Final

from re4.bundle.attributes.reader import Attributes
from re4.bundle.milvus.collection_index import CollectionSelector
from re4.bundle.milvus.fields import NO_VALUE, ROW, code_field, position_field
from re4.serving.retrieval.filters import AllowedItems, Condition

_MAX_CODES: Final = 4_096
"""A condition with more codes is left out: its text would be longer than a search takes to filter."""
_MAX_EXTRA_DEPTH: Final = 64


class CollectionFilters:
    """Makes the selectors of one version's collection."""

    def __init__(self, attributes: Attributes, fields: Collection[str]) -> None:
        """Take the attributes of a version, and the fields that its collection has."""
        self._attributes = attributes
        self._fields = frozenset(fields)
        self._places = {name: place for place, name in enumerate(attributes.names)}

    def selector(
        self, allowed: AllowedItems, conditions: Sequence[Condition], num_hidden: int
    ) -> CollectionSelector:
        """Return the selector of a search.

        Args:
            allowed: All items that may be found, at least one.
            conditions: Those by which they were chosen.
            num_hidden: Hidden items of the version, which no condition names.
        """
        if allowed.few_rows_S is not None:
            rows = ",".join(map(str, allowed.few_rows_S.tolist()))
            return CollectionSelector(expression=f"{ROW} in [{rows}]")
        expressions = [self._expression(condition) for condition in conditions]
        is_complete = not num_hidden and None not in expressions
        return CollectionSelector(
            expression=" and ".join(each for each in expressions if each),
            contains=None if is_complete else allowed.contains,
            extra_depth=min(num_hidden, _MAX_EXTRA_DEPTH),
        )

    def _expression(self, condition: Condition) -> str | None:
        """Return the expression of a condition; None where Milvus cannot evaluate it."""
        place = self._places[condition.attribute]
        attribute, codes_in = self._attributes[condition.attribute], code_field(place)
        if codes_in not in self._fields:
            return None
        if condition.range is not None and (position_in := position_field(place)) in self._fields:
            if condition.range[0] == math.inf or condition.range[1] == -math.inf:  # no number is in it
                return "" if condition.is_drop else f"({ROW} < 0)"
            bounds = zip((">=", "<="), condition.range, strict=True)
            within = [f"{position_in} {sign} {bound!r}" for sign, bound in bounds if math.isfinite(bound)]
            has = f"({' and '.join([f'{codes_in} > {NO_VALUE}', *within])})"
            return f"(not {has})" if condition.is_drop else has
        codes = [int(code) for code in condition.codes_of(attribute) if code < attribute.num_values]
        if len(codes) > _MAX_CODES:
            return None
        listed = f"[{','.join(map(str, codes))}]"
        if attribute.is_multi_valued:
            if not codes:
                return None if not condition.is_drop else ""
            has = f"array_contains_any({codes_in}, {listed})"
        else:
            has = f"{codes_in} in {listed}"
        return f"(not ({has}))" if condition.is_drop else f"({has})"
