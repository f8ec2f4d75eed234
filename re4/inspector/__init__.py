"""`re4 inspect`: a local web page for the person who judges candidates."""
