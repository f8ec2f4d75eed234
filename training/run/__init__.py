"""A run on disk, and its tensor files."""
