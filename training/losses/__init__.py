"""The losses of a training step."""
