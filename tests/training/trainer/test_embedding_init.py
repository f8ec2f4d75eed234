"""The SVD start, against an exact SVD."""

import numpy as np
import pytest
import torch
from user_sequences import sequences

from re4.training.trainer.embedding_init import svd_item_vectors


def exact_gram(users, num_items, dim):
    """Inner products of the exact starting vectors, before scaling, by NumPy's dense SVD."""
    matrix = np.zeros((len(users), num_items))
    for user, items in enumerate(users):
        matrix[user, items] = 1
    degree_u, degree_i = matrix.sum(axis=1, keepdims=True), matrix.sum(axis=0, keepdims=True)
    normalised = matrix / np.sqrt(degree_u * np.maximum(degree_i, 1))
    _, values, right = np.linalg.svd(normalised, full_matrices=False)
    vectors = right[:dim].T * np.sqrt(values[:dim])
    return vectors @ vectors.T


def test_agrees_with_the_exact_svd_up_to_scale():
    random = np.random.default_rng(0)
    tastes = [random.choice(40, 12, replace=False) for _ in range(6)]
    users = [random.choice(tastes[user % 6], 7).tolist() for user in range(80)]
    vectors = svd_item_vectors(sequences(*users), 40, 5, torch.Generator().manual_seed(0))
    seen = sorted({item for user in users for item in user})
    expected = exact_gram(users, 40, 5)[np.ix_(seen, seen)]
    found = (vectors @ vectors.T).numpy()[np.ix_(seen, seen)]
    np.testing.assert_allclose(found, expected * np.trace(found) / np.trace(expected), atol=1e-3)
    assert np.trace(found) / len(seen) == pytest.approx(1, abs=1e-5)


def test_items_without_an_event_and_missing_rank_get_small_random_numbers():
    vectors = svd_item_vectors(sequences([0, 1], [1, 2]), 5, 8, torch.Generator().manual_seed(0))
    assert vectors.shape == (5, 8)
    assert vectors.isfinite().all()
    assert (vectors.abs().sum(dim=1) > 0).all()
    assert (vectors[3:].norm(dim=1) < 0.5).all()
