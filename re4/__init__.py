"""Re4 Retrieval: the command `re4`, the error tree and the console, shared by every folder."""

import os

# ONNX Runtime keeps a telemetry database in the home folder, and sends events to its maker,
# unless told otherwise. Every process of ours imports this before it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__: str
__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """`__version__`, once somebody asks: looking it up takes longer than all else here."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("re4-retrieval")
    except PackageNotFoundError:  # a source tree that was never installed
        found = "0+unknown"
    globals()[name] = found
    return found
