"""The subcommand `re4 bench transports`."""

from typing import Any

from re4.benchmarks.common.options import PANEL, AsJson, finish
from re4.benchmarks.transports.options import TransportOptions
from re4.common import console
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(TransportOptions, PANEL)
def transports(as_json: AsJson = False, **given: Any) -> None:
    """Measure null calls, also over TLS, and Retrieves through each transport, by h2load.

    Server and client get a core each. h2load is in the Debian package nghttp2-client.

    Example: re4 bench transports --bundles demo/bundles --data demo/ml-100k
    """
    options = construct(TransportOptions, given)
    from re4.benchmarks.transports.benchmark import JSON_FILE, run

    report = run(options)
    finish(report, _show, options.out / JSON_FILE, as_json=as_json)


def _show(report: dict[str, Any]) -> None:
    console.table(
        f"Medians of {report['num_rounds']} rounds; load of the machine {report['load_average']:.1f}",
        ["transport", "calls", "callers", "calls/s", "p50 ms", "p99 ms", "CPU µs a call"],
        [
            [
                row["transport"],
                row["calls"],
                str(row["callers"]),
                *(f"{row['figures'][name]:,.{digits}f}" for name, digits in _COLUMNS.items()),
            ]
            for row in report["rows"]
        ],
    )


_COLUMNS = {"calls_per_s": 0, "p50_ms": 2, "p99_ms": 2, "cpu_us": 0}
