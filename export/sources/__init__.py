"""Inputs of a version: from a run, from given vectors, or from a published version."""
