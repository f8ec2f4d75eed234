"""`re4 report`: a page about a run, for a person to look at."""
