"""`re4 bench index`: how fast which index finds how much, beside other engines."""
