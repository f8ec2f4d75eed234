"""The subcommand `re4 bench serve`."""

from typing import Any

from re4.benchmarks.common.options import PANEL, AsJson, finish
from re4.benchmarks.common.report import number
from re4.benchmarks.serve.options import ServeOptions
from re4.common import console
from re4.serving.client.options import Ca, Certificate, Key, Tls, TlsServerName, TokenFile
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(ServeOptions, PANEL)
def serve(
    tls: Tls = False,
    ca: Ca = None,
    tls_server_name: TlsServerName = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Measure a server's latency under load, from the times at which calls were due.

    The client first measures itself against a server that does nothing, and refuses a rate that it could not
    offer. Failed calls count as slower than any answer. Ctrl-C writes what was measured, marked as partial.

    Example: re4 bench serve --bundles demo/bundles --data demo/ml-100k --rate 100

    Example: re4 bench serve --address 127.0.0.1:8700 --ids ids.txt --sweep --p99-ms 20

    Example: re4 bench serve --bundles new --against-bundles old --data demo/ml-100k --rate 100 --num-runs 10
    """
    options = construct(ServeOptions, given)
    from re4.benchmarks.serve.benchmark import MARKDOWN_FILE, run
    from re4.serving.client.connection import Connection

    connection = Connection.read(
        tls=tls, ca=ca, server_name=tls_server_name, certificate=certificate, key=key, token_file=token_file
    )
    finish(run(options, connection), _show, options.out / MARKDOWN_FILE, as_json=as_json)


def _show(report: dict[str, Any]) -> None:
    percentiles = ("p50", "p90", "p99", "p99.9")
    console.table(
        f"latency in ms, {report['server']['info']['version']} (~ limited by the client)",
        ["load", "runs", "answers/s", *percentiles, "calls", "failed"],
        [
            [
                ("~" if point["client_limit"] else "") + f"{point['label']} {point['loop']}",
                str(point["num_runs"]),
                number(point["achieved_per_s"]["mean"]),
                *(number(point["latency_ms"][name]["pooled"], missing="failed") for name in percentiles),
                f"{point['num_calls']:,}",
                f"{sum(point['failures'].values()):,}",
            ]
            for point in report["points"]
        ],
    )
    if against := report["against"]:
        console.table(
            f"{against['server']['info']['version']} at {against['server']['address']}, as multiples",
            ["figure", "mean", "from", "to (95 %)"],
            [
                [name, *(number(ratio and ratio[key], 3) for key in ("mean", "low", "high"))]
                for name, ratio in against["ratios"].items()
            ],
        )
    if knee := report["knee"]:
        console.print_line(f"knee: {knee['label'] or 'none'} ({knee['reason']})")
    if recall := report["recall"]:
        console.print_line(
            f"recall against exact search: {recall['mean']:.4f}"
            if "mean" in recall
            else f"recall was not measured: {recall['problem']}"
        )
