"""The options by which a verb is told how to reach a server. Light: nothing of gRPC until they are used."""

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "Connection"

Address = Annotated[str, typer.Option("--address", help="HOST:PORT of a running server.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]

Tls = Annotated[
    bool,
    typer.Option(
        "--tls",
        envvar="RE4_TLS",
        help="Speak TLS, trusting the authorities that this machine trusts.",
        rich_help_panel=_PANEL,
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        envvar="RE4_CA",
        help="Speak TLS, trusting servers that the authorities in this PEM file vouch for.",
        rich_help_panel=_PANEL,
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        envvar="RE4_CERTIFICATE",
        help="PEM file: the caller's own certificate, where the server asks for one (mutual TLS).",
        rich_help_panel=_PANEL,
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(envvar="RE4_KEY", help="PEM file: that certificate's private key.", rich_help_panel=_PANEL),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="RE4_TOKEN_FILE",
        help="File that holds the bearer token, where the server asks for one; or put the token itself into "
        "the variable RE4_TOKEN. Never an option: command lines are there for all to see.",
        rich_help_panel=_PANEL,
    ),
]
