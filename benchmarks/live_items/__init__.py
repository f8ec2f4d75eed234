"""`re4 bench live-items`: how soon new items are found, and what they cost."""
