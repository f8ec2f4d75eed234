"""Archives of plain arrays (.npz), each of a known type, whose axes agree. Knows no meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from re4.common.arrays import read_arrays
from re4.common.errors import BundleDamagedError


def read_archive(path: Path, forms: Mapping[str, tuple[str, str]]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a verified file.

    Args:
        path: The archive.
        forms: Type and axes of each array, such as `("<f4", "QKD")`: an axis is as long everywhere.

    Raises:
        BundleDamagedError: an array is missing, extra, empty, or of another type or shape.
    """
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise BundleDamagedError(f"{path}: {error}") from None
    if arrays.keys() != forms.keys():
        raise BundleDamagedError(f"{path}: holds {sorted(arrays)}, expected {sorted(forms)}")
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
    """Write arrays as `read_archive` reads them."""
    with path.open("wb") as file:
        np.savez(file, **{name: arrays[name].astype(dtype) for name, (dtype, _) in forms.items()})
