"""Packages that an extra of this project installs, and the message where one is missing."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from re4.common.errors import UsageError

_EXTRAS: Final[Mapping[str, str]] = {
    "faiss": "serve",
    "onnxruntime": "serve",
    "lmdb": "serve",
    "ngh2": "serve",
    "redis": "redis",
    "pymilvus": "milvus",
    "obstore": "object-storage",
    "starlette": "inspect",
    "uvicorn": "http",
    "confluent_kafka": "kafka",
    "ray": "ray",
    "torchrec": "torchrec",
    "fbgemm_gpu": "torchrec",
    **dict.fromkeys(
        ("jinja2", "matplotlib", "onnx", "onnxscript", "polars", "safetensors", "torch"), "train"
    ),
    **dict.fromkeys(("hdrh", "psutil"), "bench"),
    **dict.fromkeys(("implicit", "sklearn"), "rivals"),
}
"""The extra of each module."""
_SMALLER: Final[Mapping[tuple[str, str], str]] = {
    ("histories", "polars"): "serve",
    ("items", "polars"): "serve",
    ("inspect", "jinja2"): "inspect",
    ("inspect", "uvicorn"): "inspect",
}
"""Subcommands for which another extra is enough, by the module that is missing."""


def missing_package(error: ModuleNotFoundError, what: str) -> str | None:
    """Return what to install for a module that was not found; None for one that no extra installs.

    Args:
        error: The failed import.
        what: The subcommand or public name that needs the module.
    """
    module = (error.name or "").partition(".")[0]
    return _message(module, what) if module in _EXTRAS else None


def require(what: str, *modules: str) -> None:
    """Check that modules are installed, without importing them.

    Raises:
        UsageError: one is not; the message names its extra.
    """
    for module in modules:
        if find_spec(module) is None:
            raise UsageError(_message(module, what))


def _message(module: str, what: str) -> str:
    subcommand = what.removeprefix("re4 ").partition(" ")[0]
    extra = _SMALLER.get((subcommand, module), _EXTRAS[module])
    if extra == "torchrec":
        return (
            f"{what} under torchrun needs {module}, which is not installed: pip install "
            f"'re4-retrieval[torchrec]' with CUDA; on CPUs: pip install 're4-retrieval[torchrec-cpu]', then "
            "pip install --no-deps 'torchrec==1.8.*'"
        )
    everything = (
        " (training, export, serving and benchmarks: 're4-retrieval[cpu]', or 're4-retrieval[gpu]' where an "
        "NVIDIA GPU is to be used)"
    )
    return (
        f"{what} needs {module}, which is not installed: pip install 're4-retrieval[{extra}]'"
        f"{everything if extra in ('serve', 'train', 'bench') else ''}"
    )
