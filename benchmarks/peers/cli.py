"""The subcommand `re4 bench peers`."""

from typing import Any

from re4.benchmarks.common.options import PANEL, AsJson, finish
from re4.benchmarks.peers.options import PeersOptions
from re4.common import console
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(PeersOptions, PANEL)
def peers(as_json: AsJson = False, **given: Any) -> None:
    """Compare this server with others: same machine, vectors, requests and recall, each up to its knee.

    Each server has one core and the client another. `make peers` installs the others; one that is not
    installed is skipped, with the reason. Systems may be measured in several calls, into one --out.

    Example: re4 bench peers --bundles million/bundles --data million/data

    Example: re4 bench peers --bundles million/bundles --data million/data --systems re4,triton

    Example: re4 bench peers --bundles million/bundles --data million/data --rounds 6
    """
    options = construct(PeersOptions, given)
    from re4.benchmarks.peers.benchmark import run

    report = run(options)
    if options.prepare_only and report["status"] == "complete":
        console.print_line(f"{options.systems}: ready to be measured into {options.out}")
        return
    finish(report, _show, options.out / "report.md", as_json=as_json)


def _show(report: dict[str, Any]) -> None:
    from re4.benchmarks.peers.markdown import first_paragraph

    console.table(
        f"sustained within {report['terms']['p99_ms']:g} ms",
        ["system", "setting", "requests/s", "p50, ms", "p99, ms", "lone, ms", "recall"],
        [
            [
                one["title"],
                one["setting"],
                f"{one['sustained_per_s']['mean']:,.0f}",
                *(f"{one[name]:.1f}" for name in ("p50_ms", "p99_ms", "lone_p50_ms")),
                f"{one['recall']:.4f}",
            ]
            for one in report["comparison"]["best"]
        ],
    )
    console.print_line(first_paragraph(report))
