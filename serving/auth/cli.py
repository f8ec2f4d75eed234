"""The subcommand `re4 token`: makes a bearer token and its entry for the server's file."""

import json
import secrets
from typing import Annotated

import typer

from re4.common import console
from re4.common.errors import UsageError
from re4.serving.auth.tokens import Scope


def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the caller, for logs and metrics.")],
    users_per_s: Annotated[
        float | None,
        typer.Option(help="Users per second that the caller may request.", show_default="no limit"),
    ] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            help="Calls that the token may make. Give it again for a further scope.", show_default="retrieve"
        ),
    ] = None,
) -> None:
    """Make a token for a caller of `re4 serve --tokens FILE`.

    Standard output is the token, for its caller. Standard error is the entry for FILE, which holds only its
    hash. A running server reads the changed file by itself.

    Example: re4 token ranking --users-per-s 200 > ranking.token 2>> tokens.toml

    Example: re4 token shop --scope retrieve --scope record-events > shop.token 2>> tokens.toml
    """
    from re4.serving.auth.rate_limit import NAME
    from re4.serving.auth.tokens import token_hash

    if not NAME.fullmatch(name):
        raise UsageError(f"name {name!r}: 1 to 64 letters, digits, dots, hyphens or underscores")
    if users_per_s is not None and not 0 < users_per_s < float("inf"):
        raise UsageError(f"--users-per-s is {users_per_s}; it must be a number above 0")
    secret = secrets.token_urlsafe(32)
    console.print_line(f'["{name}"]')
    console.print_line(f'sha256 = "{token_hash(secret).hex()}"')
    if scope:
        console.print_line(f"scopes = {json.dumps(list(dict.fromkeys(scope)))}")
    if users_per_s is not None:
        console.print_line(f"users_per_s = {users_per_s:g}")
    console.stdout_console.print(secret, markup=False)
