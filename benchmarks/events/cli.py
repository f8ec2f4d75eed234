"""The verb `re4 bench events`."""

from pathlib import Path
from typing import Annotated

import typer

from re4.common.console import print_line
from re4.common.errors import UsageError


def events(
    out: Annotated[Path, typer.Option(help="The event log to write, .parquet.")],
    num_events: Annotated[int, typer.Option(help="At least so many.", min=1)] = 10_000_000,
    num_items: Annotated[int, typer.Option(help="Items to choose from.", min=1)] = 1_000_000,
    num_tastes: Annotated[int, typer.Option(help="Clusters of items that a user likes.", min=1)] = 4,
    cluster_items: Annotated[int, typer.Option(help="About so many items make a cluster.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same log.", min=0)] = 0,
) -> None:
    """Write an event log of any size, with planted interests and popularity skew.

    Example: re4 bench events --num-events 100000000 --out log.parquet
    """
    if out.suffix != ".parquet":
        raise UsageError(f"--out is {out}; name a .parquet file")
    from re4.benchmarks.synthetic.event_log import EventSpace, write_event_log

    out.parent.mkdir(parents=True, exist_ok=True)
    space = EventSpace(num_items=num_items, num_tastes=num_tastes, cluster_items=cluster_items, seed=seed)
    written = write_event_log(out, space, num_events)
    print_line(f"{written:,} events. Next: re4 data prepare --events {out} --out DATA")
