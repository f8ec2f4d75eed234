"""Options of the subcommands that call a server: address, TLS, token. Imports nothing of gRPC."""

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "Connection"

Address = Annotated[
    str,
    typer.Option(
        "--address", help="HOST:PORT of a running server; several as IP:PORT,… or dns:///NAME:PORT."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

Tls = Annotated[
    bool,
    typer.Option(
        "--tls",
        envvar="RE4_TLS",
        help="Use TLS, and trust the authorities that this machine trusts.",
        rich_help_panel=_PANEL,
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        envvar="RE4_CA",
        help="Use TLS, and trust the authorities in this PEM file.",
        rich_help_panel=_PANEL,
    ),
]
TlsServerName = Annotated[
    str | None,
    typer.Option(
        envvar="RE4_TLS_SERVER_NAME",
        help="Name that every server's certificate must have, in place of the host of --address: for several "
        "servers by IP address.",
        rich_help_panel=_PANEL,
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        envvar="RE4_CERTIFICATE",
        help="PEM file: the client's own certificate, for servers that require one (mutual TLS).",
        rich_help_panel=_PANEL,
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(
        envvar="RE4_KEY", help="PEM file: the private key of that certificate.", rich_help_panel=_PANEL
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="RE4_TOKEN_FILE",
        help="File that holds the bearer token, for servers that require one. Or put the token itself into "
        "the variable RE4_TOKEN. No option takes it, because other users can see command lines.",
        rich_help_panel=_PANEL,
    ),
]
