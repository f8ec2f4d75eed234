"""`re4 bench soak`: a server under steady load for a long time."""
