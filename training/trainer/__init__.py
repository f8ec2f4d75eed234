"""The training loop and what belongs to it: optimiser, checkpoints, warm start."""
