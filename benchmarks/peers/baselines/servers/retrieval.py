"""The work of every peer server: histories of item ids in, candidates with ids out.

The same encoder, the same vectors, the same index at the same tuned setting, and the product's own merge
(`bundle/scoring/`), so that servers differ by how they serve and by nothing else. Reads the files of a
bundle version; needs numpy, faiss and onnxruntime.

Legend: B requests, L history length, K interests, D embedding, N items, M candidates.
"""

import json
import sys
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.scoring.rescoring import best_rescored
from re4.common.onnx_runtime import onnxruntime as ort
from re4.common.shared_list_search import NO_DROP_TOO_LARGE, SharedBudget, SharedListSearch


class Encoder:
    """Item ids of histories to interests."""

    def __init__(self, version: Path) -> None:
        manifest = json.loads((version / "manifest.json").read_text())
        self.manifest = manifest
        self.ids = ItemIds.open(version, manifest["items"]["id_kind"], manifest["items"]["num_items"])
        self.vectors_ND = np.load(version / "vectors.npy", mmap_mode="r")
        self.max_history_length = manifest["model"]["max_history_length"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(
            str(version / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def encode(self, histories: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return interests [B, K, D] of histories, oldest first, of at least one known id each."""
        rows_BL = np.zeros((len(histories), self.max_history_length), np.int64)
        lengths_B = np.empty(len(histories), np.int64)
        for place, history in enumerate(histories):
            rows = self.ids.rows(history)
            newest_first = rows[rows >= 0][-self.max_history_length :][::-1]
            rows_BL[place, : len(newest_first)] = newest_first
            lengths_B[place] = len(newest_first)
        feed = {"history_vectors": self.vectors_ND[rows_BL], "lengths": lengths_B}
        (interests_BKD,) = self._session.run(["interests"], feed)
        return interests_BKD


class Retrieval(Encoder):
    """Item ids of histories to candidates."""

    def __init__(self, version: Path) -> None:
        super().__init__(version)
        faiss.omp_set_num_threads(1)
        self._index = faiss.read_index(str(version / "items.faiss"))
        found = dict(self.manifest["index"]["search_parameters"])
        self._k_factor = found.pop("k_factor", 1)
        self._pool_factor = found.pop("pool_factor", None)
        self._shared_search, self._budget = None, None
        if "shared_nprobe" in found:
            self._shared_search = SharedListSearch(self._index)
            self._budget = SharedBudget(found.pop("shared_nprobe"), found.pop("reach_drop"))
        for name, value in found.items():
            faiss.ParameterSpace().set_index_parameter(
                self._index, {"ef_search": "efSearch"}.get(name, name), value
            )

    def retrieve(
        self, histories: Sequence[Sequence[Any]], num_candidates: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, scores and interest numbers, [B, M] each, best first."""
        interests_BKD = self.encode(histories)
        num_requests, num_interests, dim = interests_BKD.shape
        num_found = min(ceil(num_candidates * self._k_factor), self._index.ntotal)
        size = ceil(num_candidates * (self._pool_factor or num_interests * self._k_factor))
        if self._shared_search is None:
            shape = (num_requests, num_interests, num_found)
            found = self._index.search(interests_BKD.reshape(-1, dim), num_found)
            scores, rows = (part.reshape(shape) for part in found)
        else:
            scores, rows = self._shared_search.search(interests_BKD, num_found, self._budget, pool_size=size)
            if (np.count_nonzero(rows >= 0, axis=(1, 2)) < num_candidates).any():  # read further lists
                budget = self._budget._replace(reach_drop=NO_DROP_TOO_LARGE)
                scores, rows = self._shared_search.search(interests_BKD, num_found, budget, pool_size=size)
        return best_rescored(scores, rows, interests_BKD, self.vectors_ND, size, num_candidates)
