"""The subcommands `re4 push` and `re4 mirror`."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from re4.common import console

_Url = Annotated[str, typer.Argument(help="Bucket and prefix: s3://…, gs://… or az://…")]


def push(
    bundles: Annotated[Path, typer.Argument(help="Bundle directory, as `re4 export` writes it.")],
    url: _Url,
    keep: Annotated[
        int | None, typer.Option(help="Older versions that stay there. Default: all of them.", min=0)
    ] = None,
) -> None:
    """Write the live version, hidden and live items of a bundle directory to object storage.

    The version becomes live there by one conditional put. Exit code 4: another publisher was at work.

    Example: re4 push bundles s3://models/shop --keep 3
    """
    from re4.bundle.remote.object_store import ObjectStore
    from re4.bundle.remote.push import push as push_version

    version = push_version(bundles, ObjectStore(url), num_kept=keep)
    console.print_line(f"{version} is live in {url}")


def mirror(
    url: _Url,
    bundles: Annotated[Path, typer.Argument(help="Local bundle directory to make and update.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C or SIGTERM.")] = False,
    interval_s: Annotated[
        float, typer.Option(help="With --follow: seconds between two looks.", min=0.1)
    ] = 5.0,
    keep: Annotated[int, typer.Option(help="Older versions that stay in the directory.", min=0)] = 1,
) -> None:
    """Follow a bundle directory in object storage into a local one, which servers follow.

    Example: re4 mirror s3://models/shop bundles --follow
    """
    from re4.bundle.remote.mirror import Mirror
    from re4.bundle.remote.object_store import ObjectStore

    followed = Mirror(ObjectStore(url), bundles, num_kept=keep)
    if not follow:
        console.print_line(f"{followed.update()} is live in {bundles}")
        return

    def report(error: Exception) -> None:
        console.print_line(f"tried again in {interval_s:g} s: {error}")

    followed.follow(interval_s, threading.Event(), report)
