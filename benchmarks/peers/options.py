"""Options of `re4 bench peers`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.settings.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class PeersOptions:
    """What to compare, and on what."""

    bundles: Path = setting(MISSING, "Bundle directory; every system serves its live version.")
    data: Path = setting(MISSING, "Prepared data set: its test users' histories are sent.")
    systems: str = setting("all", "Of re4, triton, two-hop, fastapi, separated by commas; or all.")
    p99_ms: float = setting(20.0, "The objective: milliseconds that 99 % of the calls may take.", low=0.1)
    recall: float = setting(0.95, "Of the merged list, that every system must reach.", low=0.0, high=1.0)
    num_runs: int = setting(3, "Runs at each system's sustained rate.", low=1)
    duration_s: float = setting(5.0, "Seconds of each run that count.", low=0.1)
    warmup_s: float = setting(1.0, "Seconds before them that do not count.", low=0.0)
    num_candidates: int = setting(100, "Candidates of a request.", low=1)
    seed: int = setting(0, "Of arrival times and histories.")
    work: Path = setting(Path("bench-peers-work"), "Folder that peers keep built data in.")
    out: Path = setting(
        Path("bench-peers"), "Folder for the report; keeps what earlier calls measured on the same terms."
    )
    rounds: int | None = setting(
        None,
        "Instead of sweeps: number of rounds with all systems up, each saturated and called alone, "
        "interleaved. The ratios are reliable on a machine whose speed varies.",
        low=1,
        default_text="sweeps",
    )
    prepare_only: bool = setting(
        False,
        "Build and tune what the systems need, which may take long, and measure nothing yet.",
        option="--prepare-only",
        default_text="off",
    )

    def __post_init__(self) -> None:
        check(self)
