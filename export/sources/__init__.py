"""Where a version comes from: a run, given vectors, or a published version."""
