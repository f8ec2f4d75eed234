"""`re4 bench index`: recall against throughput of each kind of index, and of other engines."""
