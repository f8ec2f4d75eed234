"""Array files of a version: mapped (.npy), archives (.npz) and texts, of the expected type and shape.

Nothing is unpickled.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from re4.bundle.safe_files import unavailable
from re4.common.arrays import map_array, read_arrays
from re4.common.errors import BundleDamagedError, BundleError

_CHUNK_TEXTS: Final = 1 << 16
"""Texts that are checked at once."""


def open_array(path: Path, dtype: DTypeLike, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Map an `.npy` file into memory, read-only; pages are read when they are touched.

    Args:
        path: A verified file (see `verify.py`).
        dtype: Its expected type, with the byte order.
        shape: Its expected shape; None where any length is allowed.

    Returns:
        A plain array over the mapping, C order.

    Raises:
        BundleDamagedError: the file is not such an array.
        BundleUnavailableError: the file cannot be read at this moment.
    """
    try:
        array = map_array(path)
    except (OSError, ValueError) as error:
        raise _reason(error, path) from error
    fits = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.dtype(dtype) or not fits or not array.flags.c_contiguous:
        expected = "x".join("any" if length is None else str(length) for length in shape)
        found = "x".join(str(length) for length in array.shape)
        raise BundleDamagedError(
            f"{path}: holds {array.dtype.str} {found}, expected {np.dtype(dtype).str} {expected} in C order"
        )
    return array


def _reason(error: OSError | ValueError, path: Path) -> BundleError:
    may_pass = unavailable(error, path) if isinstance(error, OSError) else None
    return may_pass or BundleDamagedError(f"{path}: {error}")


def map_text(path: Path, num_bytes: int) -> mmap.mmap:
    """Map a text file into memory, read-only.

    Raises:
        BundleDamagedError: the file cannot be mapped, or has another size.
        BundleUnavailableError: the file cannot be read at this moment.
    """
    try:
        with path.open("rb") as file:
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _reason(error, path) from error
    if num_bytes != len(text):
        raise BundleDamagedError(f"{path}: {len(text)} bytes, the offsets end at {num_bytes}")
    return text


def check_texts(
    offsets_N1: NDArray[np.uint64], text: NDArray[np.uint8], *, max_bytes: int, where: Path | str
) -> None:
    """Check N texts that follow each other as UTF-8.

    Args:
        offsets_N1: Where each text begins, and where the last one ends.
        text: All bytes.
        max_bytes: Most bytes of a text; it has at least one.
        where: Name of the texts in error messages.

    Raises:
        BundleDamagedError: an offset is out of order, or a text is not UTF-8.
    """
    if offsets_N1[0] != 0:
        raise BundleDamagedError(f"{where}: the first text begins at {offsets_N1[0]}, expected 0")
    for start in range(0, len(offsets_N1) - 1, _CHUNK_TEXTS):
        offsets = offsets_N1[start : start + _CHUNK_TEXTS + 1].astype(np.int64)
        lengths = np.diff(offsets)
        if lengths.min() < 1 or lengths.max() > max_bytes:
            raise BundleDamagedError(
                f"{where}: texts of {lengths.min()} to {lengths.max()} bytes, 1 to {max_bytes} are allowed"
            )
        are_continued = text[offsets[:-1]] & 0xC0 == 0x80
        try:
            text[offsets[0] : offsets[-1]].tobytes().decode()
        except UnicodeDecodeError:
            are_continued[0] = True
        if are_continued.any():
            raise BundleDamagedError(f"{where}: the texts from number {start} on are not all UTF-8")


def read_archive(path: Path, forms: Mapping[str, tuple[str, str]]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a verified `.npz` file.

    Args:
        path: The archive.
        forms: Type and axes of each array, such as `("<f4", "QKD")`: an axis has one length in all arrays.

    Raises:
        BundleDamagedError: an array is missing, extra, compressed or empty, or has another type or shape.
        BundleUnavailableError: the file cannot be read at this moment.
    """
    try:
        arrays = read_arrays(path, forms)
    except (OSError, ValueError) as error:
        raise _reason(error, path) from error
    sizes: dict[str, int] = {}
    for name, (dtype, axes) in forms.items():
        array = arrays[name]
        if array.dtype != np.dtype(dtype) or array.ndim != len(axes) or array.size == 0:
            raise BundleDamagedError(
                f"{path}: {name} is {array.dtype.str} {array.shape}, expected {dtype} {axes}"
            )
        for axis, length in zip(axes, array.shape, strict=True):
            if sizes.setdefault(axis, length) != length:
                raise BundleDamagedError(
                    f"{path}: {name} is {array.shape}, but {axis} is {sizes[axis]} elsewhere"
                )
    return arrays


def write_archive(path: Path, forms: Mapping[str, tuple[str, str]], arrays: Mapping[str, Any]) -> None:
    """Write an archive of arrays for `read_archive`."""
    with path.open("wb") as file:
        np.savez(file, **{name: arrays[name].astype(dtype) for name, (dtype, _) in forms.items()})
