"""`re4 bench transports`: what a call costs on each transport of a server."""
