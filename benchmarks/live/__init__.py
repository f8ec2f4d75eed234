"""`re4 bench live`: what recorded events cost, how soon they count, and what they cost other calls."""
