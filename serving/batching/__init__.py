"""Batches of waiting requests, and which requests are rejected under overload."""
