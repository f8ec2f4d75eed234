"""Options that several subcommands share."""

from typing import Annotated, Final

import typer

PANEL: Final = "Options"
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")]
BUNDLES: Final = "Bundle directory; its live version is served."
DATA: Final = "Prepared data set: the histories of its test users are sent. Without it, they are generated."
