"""`re4 bench overload`: far more calls than a server can answer."""
