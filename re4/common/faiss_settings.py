"""The FAISS setting by which a few queries are compared with many vectors by matrix products.

By default, FAISS 1.15 reads all vectors once for every query until there are 128,000 queries. By matrix
products it reads them once for all queries: with 20,000 and with 10⁶ vectors, eight requests of four
interests took a quarter and an eighth of the time on one thread.
"""

from typing import Any


def use_matrix_products() -> None:
    """Use matrix products in this process; called before lists are trained and before the first search."""
    import faiss

    settings: Any = faiss.cvar  # its type hints are incomplete
    settings.distance_compute_blas_threshold = 1
