"""Latency and throughput of a running server, measured from outside. See the README one folder up."""
