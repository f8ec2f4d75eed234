"""What several targets share: values read from an input, changed files, and answers to valid requests."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from re4.serving.api.batch_handler import RequestResult, answer_batch
from re4.serving.api.validation import CheckedRequest
from re4.serving.settings import Fallback

Parse = Callable[[bytes], None]


class Input:
    """Values read from the bytes of an input; zeros and empty texts at its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def __bool__(self) -> bool:
        return self._place < len(self._data)

    def bytes(self, length: int) -> bytes:
        found = self._data[self._place : self._place + length]
        self._place += length
        return found

    def number(self, num_bytes: int = 1) -> int:
        return int.from_bytes(self.bytes(num_bytes), "little")

    def real(self) -> float:
        (value,) = struct.unpack("<f", self.bytes(4).ljust(4, b"\0"))
        return float(value)

    def text(self) -> str:
        return self.bytes(self.number()).decode("utf-8", "replace")


def answer_all(batch: list[CheckedRequest]) -> None:
    """Answer valid requests; the answers hold finite scores of as many different items."""
    if not batch:
        return
    for request, result in zip(batch, answer_batch(batch, Fallback.POPULAR), strict=True):
        if isinstance(result, RequestResult):
            assert result.num_candidates <= request.num_candidates
            if result.query_result is not None:
                merged = result.query_result.merged
                assert np.isfinite(merged.scores_M).all()
                assert len(np.unique(merged.rows_M)) == len(merged.rows_M)


def changed_files(folder: Path, files: Mapping[str, bytes], data: bytes) -> None:
    """Write files with the changes that the input states: bytes overwritten, a piece cut out or inserted."""
    source = Input(data)
    names = sorted(files)
    contents = {name: bytearray(files[name]) for name in names}
    while source:
        content = contents[names[source.number() % len(names)]]
        operation, place, length = source.number() % 4, source.number(2), source.number()
        place %= len(content) + 1
        if operation == 0:
            content[place : place + length] = source.bytes(length)
        elif operation == 1:
            del content[place : place + length]
        elif operation == 2:
            content[place:place] = source.bytes(length)
        else:
            del content[place:]
    for name, content in contents.items():
        (folder / name).write_bytes(content)
