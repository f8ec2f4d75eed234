"""Candidates for whole populations of users, without a server."""
