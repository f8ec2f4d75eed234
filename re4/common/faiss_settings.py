"""FAISS compares a few queries with many vectors by matrix products.

Left to itself, FAISS 1.15 reads all vectors once for every query until there are 128,000 queries. By matrix
products it reads them once for all: of 20,000 and of 10⁶ vectors, eight requests of four interests took a
quarter and an eighth of the time on one thread. Whoever searches, answers exactly or trains lists calls this.
"""

from typing import Any


def use_matrix_products() -> None:
    """Set it for this process."""
    import faiss

    settings: Any = faiss.cvar  # its type hints are incomplete
    settings.distance_compute_blas_threshold = 1
