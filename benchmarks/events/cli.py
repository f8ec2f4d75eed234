"""The subcommand `re4 bench events`."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from re4.benchmarks.common.options import PANEL
from re4.common.console import print_line
from re4.common.errors import UsageError
from re4.settings.fields import check, construct, setting
from re4.settings.options import with_options


@dataclass(frozen=True, kw_only=True)
class EventsOptions:
    """The log to write."""

    out: Path = setting(MISSING, "The event log to write, .parquet.")
    num_events: int = setting(10_000_000, "Minimum number of events.", low=1)
    num_items: int = setting(1_000_000, "Items to choose from.", low=1)
    num_tastes: int = setting(4, "Clusters of items that a user likes.", low=1)
    cluster_items: int = setting(200, "Approximate number of items of a cluster.", low=1)
    seed: int = setting(0, "The same seed gives the same log.", low=0)

    def __post_init__(self) -> None:
        check(self)
        if self.out.suffix != ".parquet":
            raise UsageError(f"--out is {self.out}; name a .parquet file")


@with_options(EventsOptions, PANEL)
def events(**given: Any) -> None:
    """Write an event log of any size, with planted interests and popularity skew.

    Example: re4 bench events --num-events 100000000 --out log.parquet
    """
    options = construct(EventsOptions, given)
    from re4.benchmarks.synthetic.event_log import EventSpace, write_event_log

    out = options.out
    out.parent.mkdir(parents=True, exist_ok=True)
    space = EventSpace(
        num_items=options.num_items,
        num_tastes=options.num_tastes,
        cluster_items=options.cluster_items,
        seed=options.seed,
    )
    written = write_event_log(out, space, options.num_events)
    print_line(f"{written:,} events. Next: re4 data prepare --events {out} --out DATA")
