"""Small versions with an index of each kind, built once for all tests."""

from copy import copy
from functools import cache
from pathlib import Path

import faiss
import numpy as np
from small_bundles import MAX_HISTORY, NUM_INTERESTS, SmallVersion

from re4.bundle.attributes.writer import write_attributes
from re4.bundle.manifest import IndexInfo, ItemsInfo, ModelInfo
from re4.bundle.publishing.publish import stage_version
from re4.exporting.index.build import build_index
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.index.families import HNSW
from re4.exporting.index.gpu import cagra_degree, empty_cagra

NUM_ITEMS = 800

KIND_SETTINGS = {
    "hnsw": ("HNSW6,Flat", {"ef_search": 60, "k_factor": 1, "pool_factor": 2}),
    "hnsw of codes": ("HNSW6_SQ8", {"ef_search": 60, "k_factor": 2, "pool_factor": 3}),
    "hnsw of a GPU": ("CAGRA16", {"ef_search": 60, "k_factor": 1, "pool_factor": 2}),
    "ivf": ("IVF16,Flat", {"nprobe": 4, "k_factor": 1, "pool_factor": 2}),
    "ivf, one budget": (
        "IVF16,Flat",
        {"nprobe": 4, "shared_nprobe": 9, "reach_drop": 0.7, "k_factor": 1, "pool_factor": 2},
    ),
    "ivf of codes": ("IVF16,PQ8x4fsr", {"nprobe": 4, "k_factor": 3, "pool_factor": 4.5}),
    "ivf of codes, many lists": ("IVF256,PQ8x4fsr", {"nprobe": 60, "k_factor": 3, "pool_factor": 4.5}),
    "ivf of codes, many lists, one budget": (
        "IVF256,PQ8x4fsr",
        {"nprobe": 60, "shared_nprobe": 120, "reach_drop": 0.7, "k_factor": 3, "pool_factor": 4.5},
    ),
}


def _built(factory: str, vectors_ND: np.ndarray) -> BuiltIndex:
    """Build an index as export does; a graph of a GPU as FAISS copies it from there, on the CPU."""
    if not (num_links := cagra_degree(factory)):
        return build_index(factory, vectors_ND)
    graph = empty_cagra(vectors_ND.shape[1], num_links)
    graph.add(vectors_ND)
    graph.base_level_only = True
    return BuiltIndex(index=graph, factory=factory, family=HNSW)


class VersionOfKind(SmallVersion):
    """A small version with an index that is not flat."""

    def __init__(self, factory: str, info: IndexInfo) -> None:
        super().__init__(num_items=NUM_ITEMS, seed=8, has_attributes=True)
        self.info = info
        self.built = _built(factory, self.vectors_ND)
        self.index = faiss.serialize_index(self.built.index).tobytes()

    def publish(self, bundles: Path) -> str:
        with stage_version(bundles) as staged:
            self.write(staged.path)
            attributes = write_attributes(staged.path, self.attributes, NUM_ITEMS)
            return staged.publish(
                model=ModelInfo(
                    name="re4",
                    num_interests=NUM_INTERESTS,
                    embedding_dim=self.vectors_ND.shape[1],
                    max_history_length=MAX_HISTORY,
                    space=self.space,
                ),
                index=self.info,
                items=ItemsInfo(
                    num_items=NUM_ITEMS, id_kind="string", space=self.space, attributes=attributes
                ),
                evaluation={},
                lineage={},
            )


@cache
def built(kind: str) -> VersionOfKind:
    factory, settings = KIND_SETTINGS[kind]
    info = IndexInfo(kind=kind.split()[0].rstrip(","), factory=factory, search_parameters=settings)
    return VersionOfKind(factory, info)


def version_of(kind: str, **changes: object) -> VersionOfKind:
    """Return a version whose index is built once for all tests, with changes to its manifest entry."""
    version = copy(built(kind))
    version.info = IndexInfo(**(dict(version.info) | changes))
    return version
