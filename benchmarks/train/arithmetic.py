"""What a step owes in arithmetic, and how fast this machine does it."""

import time

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from re4.training.config import TrainConfig


def matmul_gflops(matrix: Tensor) -> float:
    """Measure one float32 product of a square matrix with itself, in GFLOP/s."""
    started = time.perf_counter()
    matrix @ matrix
    return float(2 * len(matrix) ** 3 / (time.perf_counter() - started) / 1e9)


def owed_gflop(config: TrainConfig, lengths_B: NDArray[np.int64], num_items: int) -> float:
    """Count one step's matrix products, each done once forward and twice backward; padding owes nothing.

    Of the interests that compete for a negative's score, only the one that has it owes the way back.
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
