"""Addresses of bundle directories in object storage, their local copies, and what is downloaded."""

import hashlib
import os
import re
from enum import Enum
from pathlib import Path


class LiveFiles(Enum):
    """The files of the live version that a subcommand opens."""

    ALL = ""
    IDS = "item_ids."
    """Those whose names begin so, and the manifest."""
    MANIFEST = "manifest.json"

    def include(self, name: str) -> bool:
        """Return whether a file of a version is one of them."""
        return name.startswith(self.value)


def url_of(bundles: Path | str) -> str | None:
    """Return the address in object storage that a bundle directory names; None for a local directory."""
    found = re.match(r"(s3|gs|az|azure):/+(.+)", str(bundles))  # a Path keeps one of the slashes
    return None if found is None else f"{found[1]}://{found[2]}"


def cache_folder(url: str, use: str) -> Path:
    """Return the folder for a local copy, below RE4_BUNDLES_CACHE or the user's folder of caches."""
    root = os.environ.get("RE4_BUNDLES_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "re4", "bundles"
    )
    url = url.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9]+", "-", url)
    return Path(root).absolute() / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}" / use


def local_directory(bundles: str, cache: Path | None) -> Path:
    """Return the directory that a server follows: that of `--bundles`, or the local copy of an address.

    Args:
        bundles: A local directory or an address.
        cache: Folder of the local copy; None for the default.
    """
    url = url_of(bundles)
    return Path(bundles) if url is None else cache or cache_folder(url, "serve")
