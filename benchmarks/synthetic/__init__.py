"""Synthetic item vectors, catalogues, bundles and event logs of any size."""
