"""Options of `re4 bench overload`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.benchmarks.common.options import BUNDLES, DATA
from re4.settings.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class OverloadOptions:
    """What to measure, and on what."""

    bundles: Path = setting(MISSING, BUNDLES)
    data: Path | None = setting(None, DATA)
    factor: float = setting(3.0, "Offered load, as a multiple of the measured peak.", low=0.01)
    seconds: float = setting(60.0, "Duration of the load.", low=0.01)
    peak_seconds: float = setting(
        5.0, "Duration of each measurement of the peak, before and after.", low=0.01
    )
    deadline_s: float = setting(2.0, "Seconds that every client waits for an answer.", low=0.01)
    num_connections: int = setting(
        32, "Connections of the client. Each carries 100 calls at a time; it holds the others back.", low=1
    )
    num_candidates: int = setting(100, "Candidates of a request.", low=1)
    server_options: str = setting("", "Further options of re4 serve, in one string.", default_text="none")
    seed: int = setting(0, "Of arrival times and histories.")
    out: Path = setting(Path("bench-overload"), "Folder for overload.json.")

    def __post_init__(self) -> None:
        check(self)
