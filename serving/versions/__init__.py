"""Loaded versions: checking a new one, swapping to it, following the files that name it."""
