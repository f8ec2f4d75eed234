"""A served answer, for its recall to be measured outside the worker."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RecallSample:
    """A live answer by maximum score."""

    path: str
    """Folder of the version that answered."""
    interests: str
    """float32 [K, D] in base64: JSON numbers would block the worker's event loop ten times as long."""
    rows: list[int]
    """Rows of the candidates."""
    excluded: list[int]
    """Rows that the request excluded."""
