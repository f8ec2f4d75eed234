"""`re4 bench bulk`: users a second of `re4 bulk` beside the pipeline alone and a server."""
