"""The subcommand `re4 inspect`."""

import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from re4.common import console
from re4.common.errors import ServerError, UsageError
from re4.common.extras import require
from re4.serving.client.options import Ca, Certificate, Key, Tls, TlsServerName, TokenFile

_LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def inspect(
    address: Annotated[
        list[str] | None,
        typer.Option("--address", help="HOST:PORT of a running server. Give it again to compare servers."),
    ] = None,
    bundles: Annotated[
        list[Path] | None,
        typer.Option("--bundles", help="Bundle directory, whose versions are loaded here, without a server."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Data set of `re4 data prepare`: its held-out users, and what they chose later."
        ),
    ] = None,
    histories: Annotated[
        str | None,
        typer.Option(
            help="Store of users' events for --bundles: a folder, or the address of a Redis server."
        ),
    ] = None,
    listen: Annotated[
        str,
        typer.Option(help="HOST:PORT of the page. Other machines reach it only by the link with its token."),
    ] = "127.0.0.1:8765",
    opens: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open", help="Open the page in a browser. Default: where there is a display."
        ),
    ] = None,
    tls: Tls = False,
    ca: Ca = None,
    tls_server_name: TlsServerName = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Look at candidates in a browser: interests, lists, filters, two versions side by side.

    Example: re4 inspect --address 127.0.0.1:8700

    Example: re4 inspect --bundles bundles --data data/ml-100k
    """
    if not address and not bundles:
        raise UsageError("what shall the page show? Give --address HOST:PORT of a server, or --bundles DIR")
    require("re4 inspect", "starlette", "uvicorn", "jinja2")
    if bundles:
        require("re4 inspect --bundles", "faiss", "onnxruntime")
    if data is not None:
        require("re4 inspect --data", "polars")
    import uvicorn

    from re4.inspector.app import build_app
    from re4.inspector.held_out import HeldOutUsers
    from re4.inspector.sources import Sources
    from re4.inspector.view import Viewer
    from re4.serving.client.connection import Connection
    from re4.serving.host.addresses import parse_address

    where = parse_address(listen)
    connection = Connection.read(
        tls=tls, ca=ca, server_name=tls_server_name, certificate=certificate, key=key, token_file=token_file
    )
    sources = Sources(
        addresses=address or (), bundles=bundles or (), connection=connection, histories=histories
    )
    held_out = None if data is None else HeldOutUsers(data)
    token = None if where.is_loopback else secrets.token_urlsafe(24)
    app = build_app(
        Viewer(sources, held_out), token=token, hosts=_LOOPBACK_NAMES if where.is_loopback else None
    )
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((where.host, where.port))
            listening.listen()  # before the link is printed: an early visitor waits
        except OSError as error:
            raise ServerError(
                f"cannot listen on {where}: {error.strerror}. Choose another --listen; with port 0 the "
                "system chooses"
            ) from None
        host = f"[{where.host}]" if ":" in where.host else where.host
        link = f"http://{host}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
        console.print_line(f"the page is at {link}  (Ctrl-C ends it)")
        if opens if opens is not None else _has_display():
            typer.launch(link)
        try:
            config = uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False)
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            sources.close()


def _has_display() -> bool:
    return sys.stdout.isatty() and bool(
        sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
