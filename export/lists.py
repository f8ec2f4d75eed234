"""Lists for inner products: items are put where they are near, and looked for where their product is large.

An item belongs to the centroid nearest to it by distance, so that a list holds items of one direction *and*
one length. A search reads the lists whose centroids have the largest products with it: long vectors first,
which are most of what is found. Lists by direction alone, FAISS's own for inner products, mix lengths, and a
search reads the short vectors along with the long: for the same recall it reads several times as many items.
Centroids are also nearer to their items, so that codes of the difference lose less.

Legend: C lists, D embedding.
"""

from typing import Any, Final

import faiss

_faiss: Any = faiss  # its type hints are incomplete
_LOOKED_AT: Final = 64
"""Nodes that assigning an item keeps in view in a graph over the centroids."""


def train_lists(base: Any, sample_TD: Any) -> None:
    """Train an IVF index so that it assigns by distance; `probe_by_product` ends that.

    Args:
        base: An IVF index, untrained, around flat centroids or a graph of them.
        sample_TD: Vectors to train on.
    """
    centroids: Any = faiss.downcast_index(base.quantizer)
    num_links = _links_of(centroids)
    _replace(base, faiss.IndexFlatL2(base.d))
    base.quantizer_trains_alone = 0
    base.cp.spherical = False
    base.train(sample_TD)
    if num_links:
        _replace(base, _around(base, _graph(base.d, num_links, faiss.METRIC_L2)))


def probe_by_product(base: Any) -> None:
    """Make an index that was filled search by inner product; others are left as they are."""
    if not isinstance(base, faiss.IndexIVF):
        return
    centroids = faiss.downcast_index(base.quantizer)
    if centroids.metric_type == faiss.METRIC_INNER_PRODUCT:
        return
    num_links = _links_of(centroids)
    by_product = (
        _graph(base.d, num_links, faiss.METRIC_INNER_PRODUCT) if num_links else faiss.IndexFlatIP(base.d)
    )
    _replace(base, _around(base, by_product))


def _links_of(centroids: Any) -> int:
    """Links of a node where the centroids are a graph, otherwise 0."""
    if not isinstance(centroids, faiss.IndexHNSW):
        return 0
    graph: Any = centroids.hnsw
    return int(graph.nb_neighbors(1))


def _graph(embedding_dim: int, num_links: int, metric: int) -> Any:
    graph: Any = faiss.IndexHNSWFlat(embedding_dim, num_links, metric)
    graph.hnsw.efSearch = _LOOKED_AT
    return graph


def _around(base: Any, centroids: Any) -> Any:
    """Other centroids' index, filled with the ones that the base has."""
    centroids.add(base.quantizer.reconstruct_n(0, base.nlist))
    return centroids


def _replace(base: Any, centroids: Any) -> None:
    """Give an index other centroids, which it owns from now on."""
    if base.own_fields:
        former: Any = faiss.downcast_index(base.quantizer)
        former.this.acquire()  # and goes with this proxy
    centroids.this.disown()
    base.quantizer = centroids
    base.own_fields = True
