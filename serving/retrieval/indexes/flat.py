"""The flat index: every item compared, so every answer exact."""

from collections.abc import Mapping
from typing import Final

from re4.serving.retrieval.indexes.kind import IndexKind


def _no_parameters(parameters: Mapping[str, int | float]) -> None:
    if parameters:
        raise ValueError(f"a flat index takes no search parameters, found {', '.join(parameters)}")


FLAT: Final = IndexKind(
    name="flat",
    signatures=frozenset({b"IxFI"}),
    faiss_types=frozenset({"IndexFlatIP"}),
    min_golden_recall=1.0,
    search_parameters=_no_parameters,
)
