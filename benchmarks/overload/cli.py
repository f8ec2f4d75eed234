"""The subcommand `re4 bench overload`."""

from typing import Any

from re4.benchmarks.common.options import PANEL, AsJson
from re4.benchmarks.common.report import number
from re4.benchmarks.overload.options import OverloadOptions
from re4.common import console
from re4.common.errors import Re4Error
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(OverloadOptions, PANEL)
def overload(as_json: AsJson = False, **given: Any) -> None:
    """Offer a server several times its peak rate, to see what it still answers and how it recovers.

    Server and client get a core each. Exits with 0 only where goodput keeps 90 % of the peak and calls are
    normal again within half a second.

    Example: re4 bench overload --bundles demo/bundles --data demo/ml-100k
    """
    options = construct(OverloadOptions, given)
    from re4.benchmarks.overload.benchmark import JSON_FILE, missed, run

    report = run(options)
    if as_json:
        console.print_json(report)
    else:
        _show(report)
    if problems := missed(report):
        raise Re4Error(f"{'; '.join(problems)}: {options.out / JSON_FILE}")
    console.print_line(f"report: {options.out / JSON_FILE}")


def _show(report: dict[str, Any]) -> None:
    goodput = f"{number(report['goodput_per_s'])} ({report['goodput_ratio']:.1%} of the peak)"
    console.table(
        f"{report['factor']:g} times the peak for {report['seconds']:g} s",
        ["", ""],
        [
            ["peak/s before, after", ", ".join(number(value) for value in report["peak_per_s"].values())],
            ["offered/s", number(report["offered_per_s"])],
            ["answered/s", goodput],
            [
                "server's CPU µs an answer: peak, overload",
                ", ".join(number(value) for value in report["cpu_us_an_answer"].values()),
            ],
            ["accepted ms", ", ".join(f"{key} {number(ms)}" for key, ms in report["accepted_ms"].items())],
            ["rejected", ", ".join(f"{code} {count:,}" for code, count in report["failures"].items())],
            ["recovery s", number(report["recovery_s"], 2, missing="never")],
            ["client's own lag, p99 ms", number(report["client_lag_p99_ms"])],
        ],
    )
