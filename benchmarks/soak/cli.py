"""The subcommand `re4 bench soak`."""

from typing import Any, Final

from re4.benchmarks.common.options import PANEL, AsJson, finish
from re4.benchmarks.common.report import number
from re4.benchmarks.soak.options import SoakOptions
from re4.common import console
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(SoakOptions, PANEL)
def soak(as_json: AsJson = False, **given: Any) -> None:
    """Keep a server busy for half an hour, to see whether it becomes slower or larger.

    Saturation is measured first, with 64 clients that wait for their answers. Then calls come on schedule at
    a share of that rate, and each minute's latencies, memory, open files and threads are kept. Ctrl-C ends it
    early.

    Example: re4 bench soak --bundles demo/bundles --data demo/ml-100k --minutes 30
    """
    options = construct(SoakOptions, given)
    from re4.benchmarks.soak.benchmark import JSON_FILE, run

    finish(run(options), _show, options.out / JSON_FILE, as_json=as_json)


_LATENCIES: Final = {"p50 ms": "p50_ms", "p99 ms": "p99_ms", "p99.9 ms": "p999_ms"}


def _show(report: dict[str, Any]) -> None:
    console.table(
        f"{report['rate_per_s']:,.0f} calls/s, {report['share']:.0%} of {report['saturated_per_s']:,.0f}/s",
        ["minute", "calls", "failed", *_LATENCIES, "RSS MiB", "PSS MiB", "files", "threads"],
        [
            [
                str(minute["number"]),
                f"{minute['num_calls']:,}",
                f"{sum(minute['failures'].values()):,}",
                *(number(minute[name]) for name in _LATENCIES.values()),
                *(number(minute[name] / 2**20) for name in ("rss_bytes", "pss_bytes")),
                str(minute["num_open_files"]),
                str(minute["num_threads"]),
            ]
            for minute in report["minutes"]
        ],
    )
    console.table(
        "drift per hour, from the second minute on",
        ["p50 ms", "p99 ms", "RSS MiB", "PSS MiB", "open files"],
        [[number(value) for value in report["drift"].values()]],
    )
