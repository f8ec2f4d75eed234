"""Options of `re4 bench index`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.common.errors import UsageError
from re4.settings.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What to measure, and on what."""

    work: Path = setting(MISSING, "Folder for vectors and built indexes; both are used again.")
    num_items: int = setting(1_000_000, "Items of the synthetic catalogue.", low=100)
    run: Path | None = setting(
        None, "A run: its item vectors and held-out histories.", default_text="synthetic catalogue"
    )
    bundles: Path | None = setting(
        None,
        "A bundle directory: its live version's vectors, golden histories.",
        default_text="synthetic catalogue",
    )
    kinds: str = setting(
        "flat,hnsw,hnsw-sq8,ivf,ivf-sq8,ivf-pq,ivf-rabitq",
        "Kinds of index, separated by commas: names or factory strings as for re4 export; or none.",
    )
    peers: str = setting(
        "none", "Other engines (see make peers), separated by commas: hnswlib, usearch, …; all; none."
    )
    threads: str = setting(
        "1", "Threads to search with, separated by commas; all: as many as there are CPUs."
    )
    num_candidates: int = setting(100, "Candidates of a request.", low=1)
    num_interests: int = setting(4, "Interests of a request on the synthetic catalogue.", low=1)
    equal_budget: bool = setting(
        False,
        "Measure kinds with lists also without a shared budget: every interest reads as many lists.",
        option="--equal-budget",
        default_text="off",
    )
    num_requests: int = setting(200, "Number of requests.", low=8)
    peer_limit_s: float = setting(3600.0, "Seconds that a peer may take in all.")
    combine: bool = setting(
        False,
        "Report what earlier commands measured in --work as well.",
        option="--combine",
        default_text="off",
    )
    out: Path = setting(Path("bench-index"), "Folder for index.json, index.md, index.png.")

    def __post_init__(self) -> None:
        check(self)
        if self.run is not None and self.bundles is not None:
            raise UsageError("--run and --bundles: give one of them")
