"""`re4 bench serve`: latency and throughput of a running server, measured from outside."""
