"""Index kinds that items can be exported to. A new kind is a file beside `flat.py` and one line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from export.indexes import flat
from export.indexes.kind import BuiltIndex, IndexBuilder

INDEX_KINDS: Final[Mapping[str, IndexBuilder]] = MappingProxyType({"flat": flat.build})

__all__ = ["INDEX_KINDS", "BuiltIndex", "IndexBuilder"]
