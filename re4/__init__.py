"""Re4 Retrieval: the command `re4`, the error tree and the console, shared by every folder."""

import os
from importlib.metadata import PackageNotFoundError, version

# ONNX Runtime keeps a telemetry database in the home folder, and sends events to its maker,
# unless told otherwise. Every process of ours imports this before it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    __version__ = version("re4-retrieval")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
