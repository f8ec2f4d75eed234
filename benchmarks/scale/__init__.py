"""`re4 bench scale`: a synthetic catalogue built, published and read, with time and memory by stage."""
