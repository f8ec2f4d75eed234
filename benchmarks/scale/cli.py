"""The subcommand `re4 bench scale`."""

from typing import Any

from re4.benchmarks.common.options import PANEL
from re4.benchmarks.scale.options import ScaleOptions
from re4.common import console
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(ScaleOptions, PANEL)
def scale(**given: Any) -> None:
    """Build, tune, publish, check and read a synthetic catalogue: time and memory by stage.

    Vectors, ids, encoder and histories are drawn from the seed. Then come the stages of re4 export, the
    quality gates of a rebuild, and two processes that load the published version as a server's workers do,
    send requests, and look up ids.

    Example: re4 bench scale --num-items 10000000 --work /data/scale --out results
    """
    options = construct(ScaleOptions, given)
    from re4.benchmarks.scale.benchmark import run

    run(options)
    console.print_line(f"report: {options.out / 'scale.md'}")
