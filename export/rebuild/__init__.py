"""`re4 rebuild`: the nightly job and its quality gates."""
