"""The inputs of all engines: item vectors, interests of requests, and scores of the last exact candidates.

A folder holds them as `vectors.npy`, `interests.npy` and `thresholds.npy`, which peers read as well.

Legend: N items, D embedding, Q requests, K interests.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.bundle.golden import GoldenQueries
from re4.bundle.layout import GOLDEN
from re4.bundle.layout import VECTORS as BUNDLE_VECTORS
from re4.bundle.publishing.current import live_version
from re4.bundle.scoring.exact_search import exact_thresholds
from re4.common.errors import UsageError
from re4.common.files import write_json
from re4.training.run.run import Run

VECTORS: Final = "vectors.npy"
INTERESTS: Final = "interests.npy"
THRESHOLDS: Final = "thresholds.npy"
SOURCE: Final = "source.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The origin of vectors and interests: a run, a bundle's live version, or else a synthetic catalogue."""

    num_items: int
    num_interests: int = 4
    """Of the synthetic catalogue."""
    run: Path | None = None
    bundles: Path | None = None

    def __str__(self) -> str:
        """Return it in words, for the report."""
        if self.run is not None:
            return f"item vectors and held-out histories of the run {self.run.name}"
        if self.bundles is not None:
            return "item vectors and golden histories of a bundle version"
        return "synthetic: benchmarks/synthetic/vectors.py, seed 0"


def prepare(source: Source, folder: Path, *, num_requests: int, num_candidates: int) -> None:
    """Write the three files, unless the folder holds them for the same source and requests already."""
    facts = {"source": repr(source), "num_requests": num_requests, "num_candidates": num_candidates}
    path = folder / SOURCE
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != facts:
            raise UsageError(f"--work {folder} holds vectors for something else: name another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    interests_QKD = _write_vectors(source, folder, num_requests)
    vectors_ND = np.load(folder / VECTORS, mmap_mode="r")
    np.save(folder / INTERESTS, interests_QKD)
    np.save(
        folder / THRESHOLDS, exact_thresholds(interests_QKD, vectors_ND, min(num_candidates, len(vectors_ND)))
    )
    write_json(path, facts)


def _write_vectors(source: Source, folder: Path, num_requests: int) -> NDArray[np.float32]:
    """Write the item vectors; return the interests of so many requests, or of as many as exist."""
    if source.run is not None:
        return _of_run(Run.open(source.run), folder, num_requests)
    if source.bundles is not None:
        version = live_version(source.bundles)
        np.save(folder / VECTORS, np.load(version / BUNDLE_VECTORS, mmap_mode="r"))
        return GoldenQueries.read(version / GOLDEN).interests_QKD[:num_requests]
    space = VectorSpace(num_items=source.num_items)
    space.write_items(folder / VECTORS)
    return space.interests(num_requests, source.num_interests)


def _of_run(run: Run, folder: Path, num_requests: int) -> NDArray[np.float32]:
    import torch

    model = run.load_model()
    vectors_ND = np.ascontiguousarray(model.item_vectors_ND().detach().cpu().numpy(), np.float32)
    np.save(folder / VECTORS, vectors_ND)
    rows_QL, lengths_Q = run.probe_histories()
    rows_QL, lengths_Q = rows_QL[:num_requests], lengths_Q[:num_requests]
    with torch.no_grad():
        interests_QKD, _ = model.encoder.cpu().eval()(
            torch.from_numpy(vectors_ND[rows_QL]), torch.from_numpy(lengths_Q)
        )
    return np.ascontiguousarray(interests_QKD.numpy(), np.float32)
