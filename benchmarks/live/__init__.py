"""`re4 bench live` and `live-items`: what recorded events and live items cost, and how soon they count."""
