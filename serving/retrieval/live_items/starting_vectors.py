"""Vectors of live items without one of their own: from attributes, and folded in from users.

A version without the file of `bundle/cold_start.py` gives them the mean vector of its items.

Legend: D embedding, N items.
"""

import logging
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attributes
from re4.bundle.cold_start import ColdStart, fold_in
from re4.bundle.fold_in import FoldInModel
from re4.bundle.layout import COLD_START, FOLD_IN
from re4.bundle.live_items.records import AttributeValues
from re4.bundle.live_items.state import SummedEvidence
from re4.bundle.manifest import Manifest
from re4.serving.retrieval.indexes.remote_vectors import ItemVectors, RemoteVectors

_MAX_SAMPLE: Final = 65_536
"""Items of which mean and typical norm are taken in a version without the file."""
_MAX_FETCHED_SAMPLE: Final = 4_096
"""The same where the item vectors are on another machine."""

_log = logging.getLogger(__name__)


class StartingVectors:
    """Makes vectors for items that no training has seen."""

    def __init__(
        self,
        attributes: Attributes,
        vectors_ND: ItemVectors,
        cold_start: ColdStart | None,
        fold_in_model: FoldInModel | None = None,
    ) -> None:
        """Take a version's parts.

        Args:
            attributes: The version's attributes.
            vectors_ND: Its item vectors.
            cold_start: Its map from attributes to vectors; None for the mean vector.
            fold_in_model: The likelihood of events; None for a weighted mean of interests.
        """
        self._attributes = attributes
        self._vectors_ND = vectors_ND
        self._cold_start = cold_start
        self._fold_in_model = fold_in_model
        self._codes: dict[tuple[str, str], int] = {}

    @classmethod
    def open(
        cls, path: Path, manifest: Manifest, attributes: Attributes, vectors_ND: ItemVectors
    ) -> "StartingVectors":
        """Read the parts that a verified version has.

        Raises:
            BundleDamagedError: a file is damaged.
        """
        cold_start = fold_in_model = None
        if (path / COLD_START).exists():
            cold_start = ColdStart.read(
                path / COLD_START, manifest.items.attributes, manifest.model.embedding_dim
            )
        if (path / FOLD_IN).exists():
            fold_in_model = FoldInModel.read(path / FOLD_IN, manifest.model.embedding_dim)
        return cls(attributes, vectors_ND, cold_start, fold_in_model)

    def read_vectors(self) -> None:
        """Read the item vectors that starting vectors depend on; later calls read none."""
        if self._cold_start is None:
            _ = self._mean_D, self.typical_norm

    def folded_in(
        self, from_attributes_D: NDArray[np.float32], evidence: SummedEvidence | None
    ) -> NDArray[np.float32]:
        """Return the vector of an item after users touched it."""
        if evidence is None or len(evidence.sum_D) != len(from_attributes_D):
            return from_attributes_D
        if self._fold_in_model is not None:
            return self._fold_in_model.vector(from_attributes_D, evidence.sum_D, evidence.num_others)
        weight = np.array([evidence.weight])
        folded_1D = fold_in(from_attributes_D[None], evidence.sum_D[None], weight, self.typical_norm)
        return np.asarray(folded_1D[0])

    def from_attributes(self, values: AttributeValues) -> NDArray[np.float32]:
        """Return the vector of an item by its attributes."""
        cold_start = self._cold_start
        if cold_start is None:
            return self._mean_D
        weights = [0]
        for name, texts in values.items():
            first = cold_start.firsts.get(name)
            if first is not None:
                codes = (self._code(name, text) for text in texts)
                weights += [first + code for code in codes if code >= 0]
        return np.asarray(cold_start.weights_WD[weights].sum(axis=0), np.float32)

    def _code(self, name: str, text: str) -> int:
        code = self._codes.get((name, text))
        if code is None:
            code = int(self._attributes[name].value_codes([text])[0])
            if code >= 0:  # the number of unknown values is not bounded
                self._codes[name, text] = code
        return code

    @cached_property
    def typical_norm(self) -> float:
        """Median norm of the item vectors."""
        if self._cold_start is not None:
            return self._cold_start.typical_norm
        return float(np.median(np.linalg.norm(self._sample, axis=1)))

    @cached_property
    def _mean_D(self) -> NDArray[np.float32]:
        _log.warning(
            "the version has no %s: live items without a vector start at the mean vector", COLD_START
        )
        return np.asarray(self._sample.mean(axis=0), np.float32)

    @property
    def _sample(self) -> NDArray[np.float32]:
        is_fetched = isinstance(self._vectors_ND, RemoteVectors)
        step = -(-len(self._vectors_ND) // (_MAX_FETCHED_SAMPLE if is_fetched else _MAX_SAMPLE))
        return self._vectors_ND.take(np.arange(0, len(self._vectors_ND), step), axis=0)
