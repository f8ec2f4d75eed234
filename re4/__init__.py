"""Re4 Retrieval: the command `re4`, the error tree and the console, shared by every folder."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("re4-retrieval")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
