"""Arrays that grow at their end. What was handed out never changes."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class GrowingArray:
    """An array that grows; `view` returns its present content without a copy."""

    def __init__(self, dtype: DTypeLike, width: int | None = None) -> None:
        """Start empty.

        Args:
            dtype: Type of the values.
            width: Values of a row; None for an array of one axis.
        """
        self._shape = () if width is None else (width,)
        self._array: NDArray[Any] = np.empty((64, *self._shape), dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, values: NDArray[Any]) -> None:
        """Add values or rows at the end."""
        length = self._length + len(values)
        if length > len(self._array):
            larger = np.empty((max(length, 2 * len(self._array)), *self._shape), self._array.dtype)
            larger[: self._length] = self._array[: self._length]
            self._array = larger
        self._array[self._length : length] = values
        self._length = length

    def view(self) -> NDArray[Any]:
        """Return the content. Later values are written behind it or into another array."""
        return self._array[: self._length]
