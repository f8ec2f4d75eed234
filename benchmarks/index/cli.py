"""The subcommand `re4 bench index`."""

from typing import Any

from re4.benchmarks.common.options import PANEL, AsJson
from re4.benchmarks.index.options import IndexOptions
from re4.common import console
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(IndexOptions, PANEL)
def index(as_json: AsJson = False, **given: Any) -> None:
    """Measure recall against throughput of each kind of index, and of other engines.

    A request is K searches, one pool of their results, true scores, and the best of it. One thread is timed
    by its CPU time, several by the clock. Measurements stay in --work: with --combine, parts measured one
    after another make one report (--kinds none --peers none: the earlier parts alone).

    Example: re4 bench index --work /data/million --peers all --threads 1,all
    """
    options = construct(IndexOptions, given)
    from re4.benchmarks.index.benchmark import run
    from re4.benchmarks.index.report import render_markdown

    report = run(options)
    if as_json:
        console.print_json(report)
    else:
        console.print_line(render_markdown(report))
