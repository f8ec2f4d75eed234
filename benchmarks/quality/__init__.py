"""`re4 bench quality`: models × seeds and baselines on one data set, by one protocol."""
