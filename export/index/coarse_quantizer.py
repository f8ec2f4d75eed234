"""Which lists a search reads: those whose best items promise most.

A list's centroid is the mean of its items, but what a search looks for are the items far out in its
direction. So each list gets a *reach*: its centroid, lengthened by two deviations of its items along it. The
lists whose reaches have the largest products with an interest are read. At N = 10⁶ half as many lists hold
the same share of the best items as by centroids alone.

Reaches only choose, so that rough ones will do: they are found by four-bit codes, in half the time of
comparing them all. Scores are made with the centroids themselves.

Legend: C lists, D embedding, N items, T items of a sample.
"""

from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.exporting.index.devices import Device
from re4.exporting.index.ivf_training import graph, links_of, replace_centroids
from re4.exporting.storage.mapped_vectors import rows_of

_faiss: Any = faiss  # its type hints are incomplete
_DEVIATIONS: Final = 2.0
_SAMPLED_PER_LIST: Final = 32
_PRIOR: Final = 4
"""Items' worth of the deviation over all lists that each list's own is mixed with."""
_FEW_LISTS: Final = 256
"""Fewer than these are compared one by one."""
_QUERY_BY_QUERY: Final = 11
"""FAISS's way of scanning codes for one query after another, its best lists first. Left to itself it goes by
lists, for all queries of a batch: interests hardly share lists, and what they keep stays poor for longer."""


def probe_by_reach(base: Any, vectors_ND: NDArray[np.float32], device: Device = Device.CPU) -> None:
    """Make an IVF index that was filled by distance search by inner product; others are left as they are.

    Args:
        base: An index trained by `lists.train_lists`.
        vectors_ND: Items for which it was trained; may be memory-mapped.
        device: What it is searched on. A GPU compares flat centroids, and scores with what it compares:
            there, only lists of whole vectors, whose scores need no centroids, are chosen by reach.
    """
    if not isinstance(base, faiss.IndexIVF):
        return
    by_distance: Any = faiss.downcast_index(base.quantizer)
    if by_distance.metric_type == faiss.METRIC_INNER_PRODUCT:
        return
    num_lists, num_links = base.nlist, links_of(by_distance)
    centroids_CD = np.ascontiguousarray(by_distance.reconstruct_n(0, num_lists))
    rows = np.unique(np.linspace(0, len(vectors_ND) - 1, _SAMPLED_PER_LIST * num_lists).astype(np.int64))
    sample_TD = rows_of(vectors_ND, rows)
    lists_T = by_distance.search(sample_TD, 1)[1][:, 0]
    reaches_CD = _reaches(centroids_CD, sample_TD, lists_T)
    if device is Device.CUDA:
        flat = _faiss.IndexFlatIP(base.d)
        flat.add(reaches_CD if isinstance(base, faiss.IndexIVFFlat) else centroids_CD)
        replace_centroids(base, flat)
        return
    replace_centroids(base, _scored_by(centroids_CD, _chooser(reaches_CD, num_links)))
    if isinstance(base, faiss.IndexIVFFastScan):
        base.implem = _QUERY_BY_QUERY


def _reaches(
    centroids_CD: NDArray[np.float32], sample_TD: NDArray[np.float32], lists_T: NDArray[np.int64]
) -> NDArray[np.float32]:
    lengths_C = np.linalg.norm(centroids_CD, axis=1)
    directions_CD = centroids_CD / np.maximum(lengths_C, np.finfo(np.float32).tiny)[:, None]
    num_lists = len(centroids_CD)
    along_T = np.einsum("td,td->t", sample_TD, directions_CD[lists_T])
    counts_C = np.bincount(lists_T, minlength=num_lists)
    means_C = np.bincount(lists_T, along_T, num_lists) / np.maximum(counts_C, 1)
    squares_C = np.bincount(lists_T, (along_T - means_C[lists_T]) ** 2, num_lists)
    prior = squares_C.sum() / len(lists_T)
    deviations_C = np.sqrt((squares_C + _PRIOR * prior) / (counts_C + _PRIOR))
    reaches_CD: NDArray[np.float32] = centroids_CD + _DEVIATIONS * deviations_C[:, None] * directions_CD
    return np.ascontiguousarray(reaches_CD, np.float32)


def _chooser(reaches_CD: NDArray[np.float32], num_links: int) -> Any:
    """An index that finds the reaches with the largest products."""
    num_lists, embedding_dim = reaches_CD.shape
    chooser: Any
    if num_links:
        chooser = graph(embedding_dim, num_links, faiss.METRIC_INNER_PRODUCT)
    elif num_lists < _FEW_LISTS:
        chooser = _faiss.IndexFlatIP(embedding_dim)
    else:
        chooser = _faiss.IndexPQFastScan(embedding_dim, embedding_dim, 4, faiss.METRIC_INNER_PRODUCT)
        chooser.pq.cp.min_points_per_centroid = 1
        chooser.train(reaches_CD)
    chooser.add(reaches_CD)
    return chooser


def _scored_by(centroids_CD: NDArray[np.float32], chooser: Any) -> Any:
    """Centroids that another index chooses from: what FAISS calls a refinement of its answers."""
    chosen: Any = _faiss.IndexRefineFlat(chooser, _faiss.swig_ptr(centroids_CD))
    chosen.k_factor = 1
    chooser.this.disown()
    chosen.own_fields = True
    return chosen
