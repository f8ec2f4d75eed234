"""Lists for inner products: items are put where they are near.

An item belongs to the centroid nearest to it by distance, so that a list holds items of one direction *and*
one length. Lists by direction alone, FAISS's own for inner products, mix lengths, and a search reads the
short vectors along with the long: for the same recall it reads several times as many items. Centroids are
also nearer to their items, so that codes of the difference lose less. Which lists a search reads is in
`probing.py`.

Legend: C lists, D embedding.
"""

from typing import Any, Final

import faiss

_faiss: Any = faiss  # its type hints are incomplete
_LOOKED_AT: Final = 64
"""Nodes that a search keeps in view in a graph over the centroids."""


def train_lists(base: Any, sample_TD: Any) -> None:
    """Train an IVF index so that it assigns by distance; `probing.probe_by_reach` ends that.

    Args:
        base: An IVF index, untrained, around flat centroids or a graph of them.
        sample_TD: Vectors to train on.
    """
    num_links = links_of(faiss.downcast_index(base.quantizer))
    replace_centroids(base, faiss.IndexFlatL2(base.d))
    base.quantizer_trains_alone = 0
    base.cp.spherical = False
    base.train(sample_TD)
    if num_links:
        around = graph(base.d, num_links, faiss.METRIC_L2)
        around.add(base.quantizer.reconstruct_n(0, base.nlist))
        replace_centroids(base, around)


def links_of(centroids: Any) -> int:
    """Links of a node where the centroids are a graph, otherwise 0."""
    if not isinstance(centroids, faiss.IndexHNSW):
        return 0
    hnsw: Any = centroids.hnsw
    return int(hnsw.nb_neighbors(1))


def graph(embedding_dim: int, num_links: int, metric: int) -> Any:
    """An empty graph to find centroids in."""
    made: Any = _faiss.IndexHNSWFlat(embedding_dim, num_links, metric)
    made.hnsw.efSearch = _LOOKED_AT
    return made


def replace_centroids(base: Any, centroids: Any) -> None:
    """Give an index other centroids, which it owns from now on."""
    if base.own_fields:
        former: Any = faiss.downcast_index(base.quantizer)
        former.this.acquire()  # and goes with this proxy
    centroids.this.disown()
    base.quantizer = centroids
    base.own_fields = True
