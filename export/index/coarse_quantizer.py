"""The coarse quantizer of an IVF index for inner products: trained by distance, searched by inner product.

**Training.** An item belongs to the centroid nearest to it by distance, so that a list holds items of one
direction *and* one length. FAISS's own lists for inner products go by direction alone and mix lengths: a
search then reads the short vectors along with the long ones, several times as many items for the same recall.
Centroids are also nearer to their items, so that codes of the difference lose less.

**Searching.** A centroid is the mean of its list, but a search looks for the items far out in its direction.
So each list gets a *reach*: its centroid, lengthened by four standard deviations of its items along it. A
search reads the lists whose reaches have the largest inner products with the interest. At N = 10⁶ half as
many lists hold the same share of the best items as with centroids alone. Reaches only select lists, so that
four-bit codes of them are enough, which take half the time; scores use the centroids themselves.

Legend: C lists, D embedding, N items, T items of a sample.
"""

from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.exporting.settings import TargetDevice
from re4.exporting.storage.mapped_vectors import read_rows

_faiss: Any = faiss  # its type hints are incomplete
_EF_SEARCH: Final = 64
"""Nodes that a search keeps in view in a graph over the centroids."""
_DEVIATIONS: Final = 4.0
_SAMPLED_PER_LIST: Final = 32
_PRIOR: Final = 4
"""Weight, in items, of the deviation over all lists in the estimate of each list's own deviation."""
_MAX_FLAT_LISTS: Final = 256
"""Fewer lists than these are compared one by one."""
_QUERY_BY_QUERY: Final = 11
"""FAISS's `implem` that scans codes for one query after another, its best lists first. Its default goes list
by list, for all queries of a batch. Interests hardly share lists, and their thresholds then rise later."""


def train_by_distance(base: Any, sample_TD: Any) -> None:
    """Train an IVF index so that it assigns items by distance; `search_by_reach` ends that.

    Args:
        base: An untrained IVF index, around flat centroids or a graph of them.
        sample_TD: Vectors to train on.
    """
    num_links = _links_of(faiss.downcast_index(base.quantizer))
    replace_quantizer(base, faiss.IndexFlatL2(base.d))
    base.quantizer_trains_alone = 0
    base.cp.spherical = False
    base.train(sample_TD)
    if num_links:
        around = _graph(base.d, num_links, faiss.METRIC_L2)
        around.add(base.quantizer.reconstruct_n(0, base.nlist))
        replace_quantizer(base, around)


def search_by_reach(
    base: Any, vectors_ND: NDArray[np.float32], device: TargetDevice = TargetDevice.CPU
) -> None:
    """Make an IVF index that was filled by distance search by inner product; leave other indexes as they are.

    Args:
        base: An index trained by `train_by_distance`.
        vectors_ND: Items that it was trained for; may be memory-mapped.
        device: The device that servers will search on. A GPU selects by flat centroids and scores with the
            same ones: reaches are used there only for lists of whole vectors, whose scores need no centroid.
    """
    if not isinstance(base, faiss.IndexIVF):
        return
    by_distance: Any = faiss.downcast_index(base.quantizer)
    if by_distance.metric_type == faiss.METRIC_INNER_PRODUCT:
        return
    num_lists, num_links = base.nlist, _links_of(by_distance)
    centroids_CD = np.ascontiguousarray(by_distance.reconstruct_n(0, num_lists))
    rows = np.unique(np.linspace(0, len(vectors_ND) - 1, _SAMPLED_PER_LIST * num_lists).astype(np.int64))
    sample_TD = read_rows(vectors_ND, rows)
    lists_T = by_distance.search(sample_TD, 1)[1][:, 0]
    reaches_CD = _reaches(centroids_CD, sample_TD, lists_T)
    if device is TargetDevice.CUDA:
        flat = _faiss.IndexFlatIP(base.d)
        flat.add(reaches_CD if isinstance(base, faiss.IndexIVFFlat) else centroids_CD)
        replace_quantizer(base, flat)
        return
    replace_quantizer(base, _scored_by_centroids(centroids_CD, _list_selector(reaches_CD, num_links)))
    if isinstance(base, faiss.IndexIVFFastScan):
        base.implem = _QUERY_BY_QUERY


def replace_quantizer(base: Any, quantizer: Any) -> None:
    """Give an index another coarse quantizer, which it owns from now on."""
    if base.own_fields:
        former: Any = faiss.downcast_index(base.quantizer)
        former.this.acquire()  # it is freed with this proxy
    quantizer.this.disown()
    base.quantizer = quantizer
    base.own_fields = True


def _links_of(centroids: Any) -> int:
    """Return the links of a node where the centroids are a graph, otherwise 0."""
    if not isinstance(centroids, faiss.IndexHNSW):
        return 0
    hnsw: Any = centroids.hnsw
    return int(hnsw.nb_neighbors(1))


def _graph(embedding_dim: int, num_links: int, metric: int) -> Any:
    """Return an empty graph to find centroids in."""
    made: Any = _faiss.IndexHNSWFlat(embedding_dim, num_links, metric)
    made.hnsw.efSearch = _EF_SEARCH
    return made


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


def _list_selector(reaches_CD: NDArray[np.float32], num_links: int) -> Any:
    """Return an index that finds the reaches with the largest inner products."""
    num_lists, embedding_dim = reaches_CD.shape
    selector: Any
    if num_links:
        selector = _graph(embedding_dim, num_links, faiss.METRIC_INNER_PRODUCT)
    elif num_lists < _MAX_FLAT_LISTS:
        selector = _faiss.IndexFlatIP(embedding_dim)
    else:
        selector = _faiss.IndexPQFastScan(embedding_dim, embedding_dim, 4, faiss.METRIC_INNER_PRODUCT)
        selector.pq.cp.min_points_per_centroid = 1
        selector.train(reaches_CD)
    selector.add(reaches_CD)
    return selector


def _scored_by_centroids(centroids_CD: NDArray[np.float32], selector: Any) -> Any:
    """Return centroids that another index selects from: FAISS's refinement of a selector's results."""
    refined: Any = _faiss.IndexRefineFlat(selector, _faiss.swig_ptr(centroids_CD))
    refined.k_factor = 1
    selector.this.disown()
    refined.own_fields = True
    return refined
