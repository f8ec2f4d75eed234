"""What a step spends most of its time in, in C, compiled for this processor when first needed.

What is compiled stays in the user's cache folder. Where there is no C compiler, or with `RE4_NATIVE=0`, the
same sums are worked out by PyTorch's operations, more slowly; so are those on a GPU.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from re4.common.files import replacing

_log = logging.getLogger(__name__)

_FLAGS = (
    "-O3",
    "-march=native",
    "-fno-strict-aliasing",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-lm",
)
_COMPILE_S = 120
MAX_LANES = 16
"""Numbers of the widest vector: rows in C are multiples of it."""
_lock = Lock()
_loaded: dict[tuple[str, tuple[tuple[str, int], ...]], ctypes.CDLL | None] = {}


def has_kernels() -> bool:
    """Say whether there is a C compiler, and nobody asked for PyTorch's operations."""
    return os.environ.get("RE4_NATIVE", "1") != "0" and _compiler() is not None


def load_kernel(source: str, **constants: int) -> ctypes.CDLL | None:
    """Give the functions of a C file of this folder, compiled with these constants; None where it cannot be.

    Threads may ask at once; only the first one compiles.
    """
    if not has_kernels():
        return None
    key = source, tuple(sorted(constants.items()))
    with _lock:
        if key not in _loaded:
            try:
                _loaded[key] = _load(Path(__file__).with_name(source), constants)
            except (OSError, subprocess.SubprocessError) as error:
                reason = str(getattr(error, "stderr", None) or error).strip()
                _log.info(f"{source} could not be compiled, and PyTorch does its work, more slowly: {reason}")
                _loaded[key] = None
        return _loaded[key]


def kernel_for(
    tensor: Tensor, source: str, widths: Mapping[str, int], **constants: int
) -> ctypes.CDLL | None:
    """The same for numbers like a tensor's, in rows of these widths; None where it does not take those."""
    is_for_it = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    if not is_for_it or any(width % MAX_LANES for width in widths.values()):
        return None
    return load_kernel(source, **widths, **constants)


def call_kernel(function: Callable[..., int], *arguments: Tensor | int | None) -> int:
    """Call a C function with int64 numbers, and with the memory of contiguous CPU tensors; None is NULL.

    Returns:
        What it returns, an int.
    """

    def as_c(value: Tensor | int | None) -> ctypes.c_int64 | ctypes.c_void_p:
        if isinstance(value, int):
            return ctypes.c_int64(value)
        assert value is None or (value.is_contiguous() and value.device.type == "cpu"), "not one piece"
        return ctypes.c_void_p(None if value is None else value.data_ptr())

    return function(*map(as_c, arguments))


def _load(source: Path, constants: dict[str, int]) -> ctypes.CDLL:
    compiler = _compiler()
    assert compiler is not None, "asked before"
    flags = [*_FLAGS, *(f"-D{name}={value}" for name, value in constants.items())]
    files = sorted(source.parent.glob("*.[ch]"))
    made_of = repr(
        [*(file.read_bytes() for file in files), compiler, _version(compiler), flags, _processor()]
    )
    name = f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:20]}.so"
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / name).exists():
            with replacing(folder / name) as part:
                _compile(compiler, source, flags, part)
        return ctypes.CDLL(str(folder / name))
    except OSError:  # no place to keep it
        with tempfile.TemporaryDirectory() as scratch:
            _compile(compiler, source, flags, Path(scratch) / name)
            return ctypes.CDLL(str(Path(scratch) / name))


def _compile(compiler: str, source: Path, flags: list[str], out: Path) -> None:
    subprocess.run(
        [compiler, str(source), *flags, "-o", str(out)],
        check=True,
        capture_output=True,
        text=True,
        timeout=_COMPILE_S,
    )


def _cache_folder() -> Path:
    cached = os.environ.get("XDG_CACHE_HOME")
    return (Path(cached) if cached else Path("~/.cache").expanduser()) / "re4"


@cache
def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC") or "cc")


@cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout


@cache
def _processor() -> str:
    """Tell processors apart for which code would be compiled differently."""
    known = Path("/proc/cpuinfo")
    if known.exists():
        lines = known.read_text(encoding="utf-8").splitlines()
        return "".join(
            sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        )
    return platform.processor()
