"""A map of vectors in two dimensions: principal components of their directions.

Legend: P points, D embedding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Points of a map."""

    points_P2: NDArray[np.float64]
    """Each coordinate from -1 to 1, at one scale."""
    shown_share: float
    """Share of the variance of the directions that the two dimensions show."""


def project(vectors_PD: NDArray[np.float32]) -> Projection:
    """Return the points of vectors, by the two directions in which their unit vectors differ most.

    Equal directions get equal points. The signs of the axes are fixed, so that a map does not flip between
    two views.
    """
    lengths_P = np.linalg.norm(vectors_PD, axis=1, keepdims=True)
    units_PD = vectors_PD / np.maximum(lengths_P, np.finfo(np.float32).tiny)
    centred_PD = (units_PD - units_PD.mean(axis=0)).astype(np.float64)
    _, sizes, axes = np.linalg.svd(centred_PD, full_matrices=False)
    axes = axes[:2]
    axes = axes * np.where(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)] < 0, -1, 1)[:, None]
    points_P2 = np.zeros((len(vectors_PD), 2))
    points_P2[:, : len(axes)] = centred_PD @ axes.T
    total = float((sizes**2).sum())
    shown_share = float((sizes[:2] ** 2).sum()) / total if total else 1.0
    largest = np.abs(points_P2).max(initial=0.0)
    return Projection(points_P2=points_P2 / largest if largest else points_P2, shown_share=shown_share)
