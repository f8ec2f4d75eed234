"""Re4 Retrieval: the public names, each imported from its module on first use.

A service that uses only a client never loads PyTorch, FAISS, ONNX Runtime or polars. `__init__.pyi` lists the
same names with their types, for type checkers and editors.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

_NAMES: Mapping[str, Sequence[str]] = {
    "re4.common.errors": (
        *("BundleBusyError", "BundleDamagedError", "BundleError", "BundleMismatchError"),
        *("BundleReadOnlyError", "BundleUnavailableError", "DataError"),
        *("ExportError", "FetchError", "GateError", "HistoryStoreError"),
        *("IndexUnavailableError", "NoUsableHistoryError"),
        *("LiveItemsError", "NotReadyError", "OverloadError"),
        *(
            "PermissionDeniedError",
            "RateError",
            "Re4Error",
            "RequestError",
            "RunError",
            "SecurityError",
            "ServerError",
            "ShedError",
        ),
        *("TooLateError", "TrainingError", "UnauthenticatedError", "UnreadRepliesError", "UsageError"),
    ),
    "re4.exporting.api": ("ExportOptions", "RebuildOptions", "export", "rebuild"),
    "re4.exporting.rebuild.report": ("RebuildReport",),
    "re4.retriever": ("Retriever",),
    "re4.serving.client.catalogue_values": ("CatalogueItem",),
    "re4.serving.client.client": ("AsyncRetrievalClient", "RetrievalClient"),
    "re4.serving.client.connection": ("Connection",),
    "re4.serving.client.item_values": ("EditedItems", "LiveItem"),
    "re4.serving.client.values": (
        *("AttributeFilter", "Candidates", "Interests", "Reasons", "RecordedEvent", "RetrieveOptions"),
    ),
    "re4.training.api": ("evaluate", "train"),
    "re4.training.data.dataset": ("Dataset",),
    "re4.training.data.prepare": ("prepare_data",),
    "re4.training.evaluation.protocol": ("Evaluation",),
    "re4.training.evaluation.run_evaluation": ("RunEvaluation",),
    "re4.training.trainer.loop": ("TrainResult",),
}
"""The public names by module."""

_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name in _MODULES:
        try:
            value = getattr(import_module(_MODULES[name]), name)
        except ModuleNotFoundError as error:
            from re4.common.extras import missing_package

            if (message := missing_package(error, f"re4.{name}")) is None:
                raise
            raise ImportError(message) from error
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names beside those that are loaded."""
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    # This look-up takes longer than the rest of the import, so it is done on first use.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("re4-retrieval")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
