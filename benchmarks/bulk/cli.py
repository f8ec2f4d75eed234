"""The subcommand `re4 bench bulk`."""

from typing import Any

from re4.benchmarks.bulk.options import BulkOptions
from re4.benchmarks.common.options import PANEL, AsJson, finish
from re4.common import console
from re4.settings.fields import construct
from re4.settings.options import with_options

_NAMES = {
    "pipeline": "encode, search and merge alone, in batches of 64",
    "bulk": "re4 bulk, after its start",
    "server": "BatchRetrieve of a server, calls of 64 users",
}


@with_options(BulkOptions, PANEL)
def bulk(as_json: AsJson = False, **given: Any) -> None:
    """Measure the users a second of `re4 bulk` on one core, beside the pipeline alone and BatchRetrieve.

    Two jobs of different sizes separate the cost of a user from that of the start. CPU time is that of the
    processes that answer, without the client of the server.

    Example: re4 bench bulk --bundles demo/bundles --data demo/ml-100k
    """
    options = construct(BulkOptions, given)
    from re4.benchmarks.bulk.benchmark import JSON_FILE, run

    finish(run(options), _show, options.out / JSON_FILE, as_json=as_json)


def _show(report: dict[str, Any]) -> None:
    console.table(
        f"Medians of {report['num_rounds']} rounds; load of the machine {report['load_average']:.1f}",
        ["", "CPU µs a user", "users/s of a core", "rate of the pipeline"],
        [
            [
                text,
                f"{report[name]['cpu_us']:.1f}",
                f"{1e6 / report[name]['cpu_us']:,.0f}",
                f"{report[name]['rate_of_pipeline']:.2f}",
            ]
            for name, text in _NAMES.items()
        ],
    )
    console.print_line(f"the start of a job takes {report['bulk']['start_cpu_s']:.1f} s of CPU time")
