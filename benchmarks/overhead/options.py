"""Options of `re4 bench overhead`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.benchmarks.common.options import BUNDLES, DATA
from re4.settings.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class OverheadOptions:
    """What to measure, and on what."""

    bundles: Path = setting(MISSING, BUNDLES)
    data: Path | None = setting(None, DATA)
    against: Path | None = setting(None, "Another bundle directory: compare the two servers, in pairs.")
    num_rounds: int = setting(5, "Rounds; every figure is the median over them.", low=1)
    seconds: float = setting(3.0, "Of each of the seven parts of a round.", low=0.1)
    num_candidates: int = setting(100, "Candidates of a request.", low=1)
    device: str = setting("cpu", "As for re4 serve: cpu or cuda.")
    seed: int = setting(0, "Of the histories.")
    out: Path = setting(Path("bench-overhead"), "Folder for report.json and report.md.")

    def __post_init__(self) -> None:
        check(self)
