"""Index kinds that this server may load: the allow-list, and how each kind is searched.

FAISS can deserialise dozens of types, each with a parser of its own. Only files that begin like a kind on
this list reach it. A new kind is a file beside `flat.py` and one line in `KINDS`; what may lie inside
one is in `parts.py`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from re4.serving.retrieval.indexes.flat import FLAT
from re4.serving.retrieval.indexes.hnsw import HNSW
from re4.serving.retrieval.indexes.ivf import IVF
from re4.serving.retrieval.indexes.kind import IndexKind

KINDS: Final[Mapping[str, IndexKind]] = MappingProxyType({kind.name: kind for kind in (FLAT, HNSW, IVF)})

__all__ = ["KINDS", "IndexKind"]
