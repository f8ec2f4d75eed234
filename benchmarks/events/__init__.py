"""`re4 bench events`: write a synthetic event log."""
