"""The subcommand `re4 bench overhead`."""

from typing import Any

from re4.benchmarks.common.options import PANEL, AsJson, finish
from re4.benchmarks.overhead.options import OverheadOptions
from re4.common import console
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(OverheadOptions, PANEL)
def overhead(as_json: AsJson = False, **given: Any) -> None:
    """Measure what serving adds to the work itself: encode, search and merge, and an empty call.

    A server, a null server (same request, same reply, no work) and the bare pipeline take turns on one core;
    their client has another. With --against, two servers take turns instead, and the ratio is reported.

    Example: re4 bench overhead --bundles demo/bundles --data demo/ml-100k

    Example: re4 bench overhead --bundles with-flows/bundles --against without/bundles --data demo/ml-100k
    """
    options = construct(OverheadOptions, given)
    from re4.benchmarks.overhead.benchmark import run

    finish(run(options), _show, options.out / "report.md", as_json=as_json)


def _show(report: dict[str, Any]) -> None:
    console.table(
        "shares and multiples" if report["figures"] else "ratios",
        ["figure", "median", "lowest", "highest"],
        [
            [name, *(f"{found[key]:.3f}" for key in ("median", "low", "high"))]
            for name, found in (report["figures"] or report["ratios"]).items()
        ],
    )
