"""The hot loops of a training step as C kernels, compiled on first use for the local CPU.

Compiled kernels stay in the user's cache folder. Without a C compiler, with `RE4_NATIVE=0` and on a
GPU, PyTorch's operations compute the same sums; on a CPU they are slower.
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
"""Float32 numbers of the widest SIMD vector; the length of a row in C is a multiple of it."""
_lock = Lock()
_loaded: dict[tuple[str, tuple[tuple[str, int], ...]], ctypes.CDLL | None] = {}


def has_kernels() -> bool:
    """Return whether there is a C compiler and `RE4_NATIVE` is not 0."""
    return os.environ.get("RE4_NATIVE", "1") != "0" and _compiler() is not None


def load_kernel(source: str, **constants: int) -> ctypes.CDLL | None:
    """Return a C file of this folder, compiled with these constants; None where that is impossible.

    Threads may call it at the same time; the first one compiles.
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
                _log.info(f"{source} could not be compiled; PyTorch does its work, more slowly: {reason}")
                _loaded[key] = None
        return _loaded[key]


def kernel_for(
    tensor: Tensor, source: str, widths: Mapping[str, int], **constants: int
) -> ctypes.CDLL | None:
    """Load a kernel for rows of these widths, like a tensor's; None where it does not accept them."""
    is_for_it = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    if not is_for_it or any(width % MAX_LANES for width in widths.values()):
        return None
    return load_kernel(source, **widths, **constants)


def call_kernel(function: Callable[..., int], *arguments: Tensor | int | None) -> int:
    """Call a C function with int64 numbers and the memory of contiguous CPU tensors; None is NULL.

    Returns:
        The function's int.
    """

    def as_c(value: Tensor | int | None) -> ctypes.c_int64 | ctypes.c_void_p:
        if isinstance(value, int):
            return ctypes.c_int64(value)
        assert value is None or (value.is_contiguous() and value.device.type == "cpu"), "not contiguous"
        return ctypes.c_void_p(None if value is None else value.data_ptr())

    return function(*map(as_c, arguments))


def _load(source: Path, constants: dict[str, int]) -> ctypes.CDLL:
    compiler = _compiler()
    assert compiler is not None, "has_kernels comes first"
    flags = [*_FLAGS, *(f"-D{name}={value}" for name, value in constants.items())]
    files = sorted(source.parent.glob("*.[ch]"))
    inputs = repr([*(file.read_bytes() for file in files), compiler, _version(compiler), flags, _cpu()])
    name = f"{source.stem}-{hashlib.sha256(inputs.encode()).hexdigest()[:20]}.so"
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / name).exists():
            with replacing(folder / name) as part:
                _compile(compiler, source, flags, part)
        return ctypes.CDLL(str(folder / name))
    except OSError:  # the cache folder cannot be written
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
def _cpu() -> str:
    """Identify the CPU: another one needs other machine code."""
    known = Path("/proc/cpuinfo")
    if known.exists():
        lines = known.read_text(encoding="utf-8").splitlines()
        return "".join(
            sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        )
    return platform.processor()
