"""The arithmetic of a training step, and the speed of this machine."""

import time

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from re4.training.config import TrainConfig


def matmul_gflops(matrix: Tensor) -> float:
    """Return the speed of one float32 product of a square matrix with itself, in GFLOP/s."""
    started = time.perf_counter()
    matrix @ matrix
    return float(2 * len(matrix) ** 3 / (time.perf_counter() - started) / 1e9)


def owed_gflop(config: TrainConfig, lengths_B: NDArray[np.int64], num_items: int) -> float:
    """Return one step's arithmetic: matrix products, once forward and twice backward, without padding.

    Of the interests that compete for a negative's score, only the winner has a backward pass.
    """
    batch, dim, width = len(lengths_B), config.embedding_dim, config.attention_dim
    interests = config.K
    positions = int(lengths_B.sum())
    pairs = int((lengths_B.astype(float) ** 2).sum())
    num_negatives = num_items if config.negatives == "all" else config.num_negatives
    scores = batch * num_negatives * dim  # of one interest each, with the negatives
    products = (
        positions * dim * width  # W1
        + positions * width * interests  # w
        + positions * interests * dim  # the weighted sum
        + batch * interests * dim * dim  # W2
        + scores
    )
    if config.contrast_weight:
        products += interests * dim * (2 * positions + batch * interests)
    if config.attend_weight:
        products += positions * interests * dim
    if config.construct_weight:
        pieces = config.construct_dim
        products += positions * interests * (dim * pieces + dim * dim)  # W3 W4 and W5 W4
        products += pairs * interests * (pieces + dim)  # logits, weighted sum
    beaten = (interests - 1) * scores if config.negative_scores == "served" else 0
    return float((3 * products + beaten) * 2 / 1e9)
