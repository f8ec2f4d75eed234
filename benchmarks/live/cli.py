"""The subcommand `re4 bench live`."""

from typing import Any

from re4.benchmarks.common.options import PANEL, AsJson, finish
from re4.benchmarks.common.report import number
from re4.benchmarks.live.options import LiveOptions
from re4.common import console
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(LiveOptions, PANEL)
def live(as_json: AsJson = False, **given: Any) -> None:
    """Measure recorded events: durable latency and throughput, time to the next answer, cost to other calls.

    Example: re4 bench live --bundles demo/bundles --data demo/ml-100k

    Example: re4 bench live --bundles demo/bundles --valkey redis://127.0.0.1:6379/0 --parts events,users
    """
    options = construct(LiveOptions, given)
    from re4.benchmarks.live.benchmark import JSON_FILE, run

    finish(run(options), _show, options.out / JSON_FILE, as_json=as_json)


def _show(report: dict[str, Any]) -> None:
    for part, figures in report["parts"].items():
        console.table(
            f"{part}",
            ["figure", "value", "goal"],
            [[each["figure"], number(each["value"], 3), each["goal"]] for each in figures],
        )
