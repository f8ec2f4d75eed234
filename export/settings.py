"""Settings that `re4 export` and `re4 rebuild` share, each declared once. Loads neither FAISS nor PyTorch."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from re4.bundle.milvus.address import MilvusAddress, is_milvus, parse_index
from re4.common.errors import UsageError
from re4.settings.fields import setting
from re4.settings.sizes import parse_bytes

AUTO: Final = "auto"
MIN_RECALL: Final = 0.6
"""Lowest target: servers refuse an index that finds less than half of the golden candidates."""


class TargetDevice(StrEnum):
    """The device that the servers of a version search on, as far as it decides how the index is built."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, kw_only=True)
class RecallTarget:
    """The recall that an index must reach."""

    recall: float
    """Mean share of the exact merged candidates to find, 0 to 1."""
    num_candidates: int
    """Candidates of a request."""


@dataclass(frozen=True, kw_only=True)
class VersionSettings:
    """The index and the attributes of a version."""

    index: str = setting(
        AUTO,
        "auto chooses by the number of items. flat compares every item and is exact. hnsw, hnsw-sq8, ivf, "
        "ivf-sq8, ivf-pq and ivf-rabitq are approximate and faster. So is a FAISS factory string of an index "
        "that servers load, such as IVF1024,PQ32x4fs. milvus://HOST:PORT makes a collection in Milvus (extra "
        "milvus); ?index=flat, ivf, ivf-sq8 or hnsw after it chooses its kind.",
    )
    recall: float = setting(
        0.95, "Share of the exact candidates that an approximate index must find, 0.6 to 1."
    )
    num_candidates: int = setting(100, "Candidates of a request, for which the index is tuned.")
    attributes: str | None = setting(
        None,
        'Columns of the catalogue that callers can filter by; "" for none.',
        default_text="every column of texts, numbers, booleans, dates, times or lists of those that has at "
        "most 100,000 values and, unless it holds fractions, dates or times, at least 2 items to a value; so "
        "no titles",
        metavar="NAME,NAME",
    )
    title_column: str | None = setting(
        None,
        "Column of the catalogue with the titles of the items, which `re4 inspect` and `re4 retrieve` show; "
        '"" for none.',
        default_text="`title`, or else `name`, where such a column holds texts",
        metavar="NAME",
    )
    cold_share: float | None = setting(
        None,
        "Share of the places in the lists of held-out users that items without a trained vector get, by the "
        "scale of the vectors that are made from their attributes; 0 to 1.",
        default_text="their share of the catalogue, at most 0.1",
    )
    memory_limit: str | None = setting(
        None,
        "Most memory that building the index may take, such as 8GiB; an index that needs more is refused "
        "before it is built.",
        default_text="what the index needs",
        metavar="SIZE",
    )
    go_live: bool = setting(
        True, "Make the version the live one. Otherwise servers load it after `re4 canary` or `re4 rollback`."
    )
    device: TargetDevice = setting(
        TargetDevice.CPU,
        "Device that servers will search the index on. cuda builds an index that a GPU can hold: flat, ivf, "
        "ivf-sq8 or cagra, a graph that a GPU has to build.",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            UsageError: naming the option.
        """
        if not MIN_RECALL <= self.recall <= 1:
            raise UsageError(f"--recall is {self.recall:g}; choose {MIN_RECALL:g} to 1")
        if self.num_candidates < 1:
            raise UsageError(f"--num-candidates is {self.num_candidates}; at least 1 is needed")
        if self.cold_share is not None and not 0 <= self.cold_share <= 1:
            raise UsageError(f"--cold-share is {self.cold_share:g}; choose 0 to 1")
        _ = self.memory_limit_bytes

    @property
    def target(self) -> RecallTarget:
        """The recall that the index is tuned to."""
        return RecallTarget(recall=self.recall, num_candidates=self.num_candidates)

    @property
    def milvus_address(self) -> MilvusAddress | None:
        """The server that gets the index; None for an index in a file."""
        return parse_index(self.index)[0] if is_milvus(self.index) else None

    @property
    def attribute_names(self) -> list[str] | None:
        """Columns to keep as attributes; None to choose."""
        return None if self.attributes is None else [name for name in self.attributes.split(",") if name]

    @property
    def memory_limit_bytes(self) -> int | None:
        """Bytes that building the index may hold at once; None for no limit."""
        return None if self.memory_limit is None else parse_bytes(self.memory_limit, "--memory-limit")
