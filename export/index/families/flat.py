"""The flat index: every item compared, so every answer exact and nothing to tune."""

from collections.abc import Sequence
from typing import Any, Final

from re4.exporting.index.families.kind import IndexFamily, Settings


def _settings(index: Any, num_results: int) -> Sequence[Settings]:
    return [{}]


FLAT: Final = IndexFamily(
    name="flat",
    faiss_types=frozenset({"IndexFlat", "IndexFlatIP"}),
    is_exact=True,
    settings=_settings,
    parameters=lambda settings: None,
    advice="nothing: it is exact",
)
