"""`re4 bench overhead`: what the server adds to the work itself, and what an empty call costs."""
