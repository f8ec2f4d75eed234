"""`re4 bench overhead`: the cost that serving adds to the work itself."""
