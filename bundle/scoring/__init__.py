"""Scores of items by their vectors: exact search, recall modulo ties, re-scoring of a candidate pool."""
