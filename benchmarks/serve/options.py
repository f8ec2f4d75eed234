"""Options of `re4 bench serve`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from re4.common.errors import UsageError
from re4.settings.fields import check, setting

if TYPE_CHECKING:
    from re4.benchmarks.load_generator.load import Load

_FIRST_RATE_PER_S = 50.0


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What to measure, and on what."""

    address: str | None = setting(None, "HOST:PORT of a running server.")
    bundles: Path | None = setting(
        None,
        "Bundle directory. Without --address, a server is started on it. Histories are generated from its "
        "ids, and recall is measured against exact search in it.",
    )
    data: Path | None = setting(None, "Prepared data set: the histories of its test users are sent.")
    ids: Path | None = setting(None, "File with one item id a line, to generate histories from.")
    rate: float | None = setting(
        None,
        "Open loop: calls per second, however slow the answers. With --sweep: the first rate.",
        low=0.01,
        default_text="50 with --sweep",
    )
    sweep: bool = setting(
        False,
        "Find the highest rate that meets --p99-ms, from --rate on.",
        option="--sweep",
        default_text="off",
    )
    p99_ms: float = setting(
        20.0, "The objective of --sweep: milliseconds that 99 % of the calls may take.", low=0.01
    )
    concurrency: int | None = setting(
        None,
        "Closed loop instead: number of clients that wait for their answers. Hides a server's pauses.",
        low=1,
    )
    arrivals: str = setting(
        "poisson",
        "How calls arrive: poisson (independent users) or constant (even distances).",
        choices=("poisson", "constant"),
    )
    num_runs: int = setting(3, "Runs at each reported load; intervals need at least 3.", low=1)
    duration_s: float = setting(10.0, "Seconds of each run that count.", low=0.01)
    warmup_s: float = setting(2.0, "Seconds before them that do not count.", low=0)
    deadline_s: float = setting(
        5.0, "A call without an answer so many seconds after it was due has failed.", low=0.01
    )
    num_candidates: int = setting(50, "Candidates of a request.", low=1)
    exclude_history: bool = setting(
        False,
        "Leave the history's items out.",
        option="--exclude-history/--keep-history",
        default_text="keep them",
    )
    num_workers: int = setting(1, "Processes of the client.", low=1)
    num_channels: int = setting(
        8, "Connections of each; the kernel deals connections to the server's processes.", low=1
    )
    num_processes: int = setting(1, "Processes of the server that --bundles starts.", low=1)
    against_address: str | None = setting(
        None, "Compare with the server at HOST:PORT: the same load, interleaved."
    )
    against_bundles: Path | None = setting(None, "Compare with a server started on this bundle directory.")
    server_pid: int | None = setting(
        None, "Process id of the server at --address, to measure its CPU and memory."
    )
    seed: int = setting(0, "Of arrival times and histories.")
    out: Path = setting(Path("bench-serve"), "Folder for report.json, report.md and report.png.")

    def __post_init__(self) -> None:
        if self.concurrency is not None and (self.sweep or self.rate is not None):
            raise UsageError("--concurrency is a closed loop: it goes with neither --rate nor --sweep")
        if self.concurrency is None and self.rate is None and not self.sweep:
            raise UsageError(
                "name what to measure: --rate CALLS_PER_SECOND, --sweep, or --concurrency CLIENTS"
            )
        if self.is_comparison and (self.sweep or None not in (self.against_address, self.against_bundles)):
            raise UsageError("--against-address or --against-bundles, and with --rate or --concurrency only")
        check(self)

    @property
    def is_comparison(self) -> bool:
        """Whether there is a second server."""
        return self.against_address is not None or self.against_bundles is not None

    @property
    def load(self) -> "Load":
        """The load, or the first one of a sweep."""
        from re4.benchmarks.load_generator.load import ClosedLoad, OpenLoad

        if self.concurrency is not None:
            return ClosedLoad(concurrency=self.concurrency)
        return OpenLoad(
            rate_per_s=_FIRST_RATE_PER_S if self.rate is None else self.rate,
            arrivals="constant" if self.arrivals == "constant" else "poisson",
        )
