"""One at a time: those who change which versions there are, or which is live, wait for each other.

A publisher does not take part: what it does is safe at any instant (see `publish.py`).
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle.files import open_folder


@contextmanager
def exclusive(bundles: Path) -> Iterator[None]:
    """Hold the bundle directory while the block runs. The lock dies with its process.

    Raises:
        BundleError: no such directory.
    """
    with open_folder(bundles) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
