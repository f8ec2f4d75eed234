"""A catalogue with live items in plain Python, to compare answers with: every item is scored, one by one."""

from pathlib import Path
from typing import Any

import numpy as np
from small_bundles import SmallVersion

from re4.bundle.live_items.records import Change, Evidence, Record, Removal, Upsert
from re4.bundle.verify import read_manifest
from re4.common.attribute_values import value_text
from re4.serving.versions.snapshot import Snapshot, load_snapshot


class LiveCatalogue:
    """What items there are, after changes; in catalogue order, live ones in the order of their change."""

    def __init__(self, version: SmallVersion) -> None:
        self.version = version
        self.mean_D = version.vectors_ND.mean(axis=0)
        self.vectors: dict[Any, np.ndarray] = dict(zip(version.ids, version.vectors_ND, strict=True))
        self.values: dict[Any, dict[str, set[str]]] = {
            id_: {name: self._texts(column[row]) for name, column in version.attributes.items()}
            for row, id_ in enumerate(version.ids)
        }
        self.removed: set[Any] = set()
        self.hidden: set[Any] = set()
        self.trained = dict(self.vectors)

    @staticmethod
    def _texts(value: Any) -> set[str]:
        values = value if isinstance(value, list) else [value]
        return {text for each in values if (text := value_text(each)) is not None}

    def apply(self, change: Change) -> None:
        id_ = change.id
        assert not isinstance(change, Evidence)
        if isinstance(change, Removal):
            self.removed.add(id_)
            return
        self.removed.discard(id_)
        for items in (self.vectors, self.values):
            items.pop(id_, None)  # it comes last in the catalogue from now on
        self.vectors[id_] = (
            change.vector_D if change.vector_D is not None else self.trained.get(id_, self.mean_D)
        )
        self.values[id_] = {name: set(values) for name, values in change.attributes.items()}

    def interests(self, history: list[Any]) -> np.ndarray:
        known = [id_ for id_ in history if id_ in self.vectors]
        matrix = np.stack([self.vectors[id_] for id_ in known]).astype(np.float32)
        version, before = self.version, self.version.vectors_ND
        version.vectors_ND = matrix
        try:
            return version.encode(list(range(len(known))))[0]
        finally:
            version.vectors_ND = before

    def best(
        self,
        history: list[Any],
        num: int,
        *,
        exclude: set[Any] = frozenset(),
        keep: dict[str, set[str]] | None = None,
    ) -> list[tuple[Any, float]]:
        interests_KD = self.interests(history)
        found = [
            (id_, float((interests_KD @ vector_D.astype(np.float64)).max()))
            for id_, vector_D in self.vectors.items()
            if id_ not in self.removed | self.hidden | exclude
            and all(self.values[id_].get(name, set()) & values for name, values in (keep or {}).items())
        ]
        return sorted(found, key=lambda each: -each[1])[:num]


def open_snapshot(bundles: Path, name: str, *, maps_vectors: bool = True) -> Snapshot:
    path = bundles / name
    return load_snapshot(path, read_manifest(path), max_batch_size=4, maps_vectors=maps_vectors)


def records_of(changes: list[Change], *, start: int = 1) -> list[Record]:
    return [Record(number, 0, change) for number, change in enumerate(changes, start)]


def upsert(id_: Any, vector: Any = None, space: str = "a" * 64, **attributes: tuple[str, ...]) -> Upsert:
    return Upsert(
        id_,
        attributes,
        None if vector is None else np.asarray(vector, np.float32),
        space if vector is not None else "",
    )
