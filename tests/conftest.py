"""What holds for every test: the same examples every time, one thread, no limit on how long one takes."""

import os

# Read by polars when it is first imported, so it comes before everything else.
os.environ.setdefault("POLARS_MAX_THREADS", "1")

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
