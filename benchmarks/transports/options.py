"""The options of `re4 bench transports`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.benchmarks.common.options import BUNDLES, DATA
from re4.settings.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class TransportOptions:
    """What to measure, and on what."""

    bundles: Path = setting(MISSING, BUNDLES)
    data: Path | None = setting(None, DATA)
    num_rounds: int = setting(3, "Rounds, each with every transport in turn; figures are medians.", low=1)
    seconds: float = setting(3.0, "Duration of each load.", low=0.1)
    num_candidates: int = setting(100, "Candidates of a request.", low=1)
    server_options: str = setting("", "Further options of re4 serve, in one string.", default_text="none")
    seed: int = setting(0, "Of the histories.")
    out: Path = setting(Path("bench-transports"), "Folder for transports.json.")

    def __post_init__(self) -> None:
        check(self)
