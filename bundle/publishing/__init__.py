"""The bundle directory: publishing, roll-back, pruning, locks."""
