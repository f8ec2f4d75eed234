"""Options of `re4 bench soak`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.benchmarks.common.options import BUNDLES, DATA
from re4.common.errors import UsageError
from re4.settings.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class SoakOptions:
    """What to measure, and on what."""

    bundles: Path = setting(MISSING, BUNDLES)
    data: Path | None = setting(None, DATA)
    minutes: int = setting(30, "Duration.", low=1)
    share: float = setting(0.7, "Load, as a share of the saturated rate.")
    num_processes: int = setting(1, "Processes of the server.", low=1)
    num_workers: int = setting(1, "Processes of the client.", low=1)
    num_candidates: int = setting(50, "Candidates of a request.", low=1)
    seed: int = setting(0, "Of arrival times and histories.")
    out: Path = setting(Path("bench-soak"), "Folder for soak.json.")

    def __post_init__(self) -> None:
        check(self)
        if not 0 < self.share < 1:
            raise UsageError(f"--share {self.share:g}: must be between 0 and 1")
