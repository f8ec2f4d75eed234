"""`re4 report`: an HTML page about a run."""
