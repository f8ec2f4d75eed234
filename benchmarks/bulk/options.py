"""The options of `re4 bench bulk`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.benchmarks.common.options import BUNDLES, DATA
from re4.settings.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """What to measure, and on what."""

    bundles: Path = setting(MISSING, BUNDLES)
    data: Path | None = setting(None, DATA)
    num_users: int = setting(20_000, "Users of the small job; the large one has four times as many.", low=100)
    num_candidates: int = setting(100, "Candidates of a user.", low=1)
    num_rounds: int = setting(3, "Rounds, each with every part in turn; figures are medians.", low=1)
    seconds: float = setting(3.0, "Duration of the loads of the pipeline and of the server.", low=0.1)
    seed: int = setting(0, "Of the histories.")
    out: Path = setting(Path("bench-bulk"), "Folder for bulk.json.")

    def __post_init__(self) -> None:
        check(self)
