"""Preparation of an event log by a Ray cluster, with the rules of the local engine."""
