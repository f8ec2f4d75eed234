"""The hot loops of a training step as C kernels, compiled on first use for the local CPU.

Compiled kernels stay in the user's cache folder. Without a C compiler, with `RE4_NATIVE=0` and on a
GPU, PyTorch's operations compute the same sums; on a CPU they are slower.
"""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from re4.common.native_code import FLAGS as _FLAGS
from re4.common.native_code import is_native_allowed, load_optional_library

MAX_LANES = 16
"""Float32 numbers of the widest SIMD vector; the length of a row in C is a multiple of it."""
_lock = Lock()
_loaded: dict[tuple[str, tuple[tuple[str, int], ...]], ctypes.CDLL | None] = {}


def has_kernels() -> bool:
    """Return whether there is a C compiler and `RE4_NATIVE` is not 0."""
    return is_native_allowed()


def load_kernel(source: str, **constants: int) -> ctypes.CDLL | None:
    """Return a C file of this folder, compiled with these constants; None where that is impossible.

    Threads may call it at the same time; the first one compiles.
    """
    if not has_kernels():
        return None
    key = source, tuple(sorted(constants.items()))
    with _lock:
        if key not in _loaded:
            defines = (f"-D{name}={value}" for name, value in constants.items())
            _loaded[key] = load_optional_library(
                Path(__file__).with_name(source), "PyTorch does its work, more slowly", [*_FLAGS, *defines]
            )
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
