"""Options that several subcommands share, and the end of a subcommand."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from re4.common import console
from re4.common.errors import Re4Error

PANEL: Final = "Options"
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")]
BUNDLES: Final = "Bundle directory; its live version is served."
DATA: Final = "Prepared data set: the histories of its test users are sent. Without it, they are generated."


def finish(
    report: dict[str, Any], show: Callable[[dict[str, Any]], None], path: Path, *, as_json: bool
) -> None:
    """Print a report as JSON, or show it, and then its file."""
    if as_json:
        console.print_json(report)
    else:
        show(report)
    if (status := report.get("status", "complete")) != "complete":
        raise Re4Error(f"{status} report, {path}: {report['status_reason']}")
    console.print_line(f"report: {path}")
