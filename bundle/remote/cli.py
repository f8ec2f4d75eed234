"""The subcommands `re4 push` and `re4 mirror`."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from re4.common import console
from re4.common.errors import UsageError
from re4.settings.sizes import parse_bytes

_Url = Annotated[str, typer.Argument(help="Bucket and prefix: s3://…, gs://… or az://…")]


def push(
    bundles: Annotated[Path, typer.Argument(help="Bundle directory, as `re4 export` writes it.")],
    url: _Url,
    keep: Annotated[
        int | None, typer.Option(help="Older versions that stay there. Default: all of them.", min=0)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until Ctrl-C or SIGTERM, and push what changes.")
    ] = False,
    interval_s: Annotated[
        float, typer.Option(help="With --follow: seconds between two looks.", min=0.1)
    ] = 1.0,
) -> None:
    """Write the live version, hidden and live items of a bundle directory to object storage.

    The version becomes live there by one conditional put. Exit code 4: another publisher was at work.

    With --follow, live items that a server writes into the directory are in object storage a second later.

    Example: re4 push bundles s3://models/shop --keep 3
    """
    from re4.bundle.remote.object_store import ObjectStore
    from re4.bundle.remote.push import follow_and_push
    from re4.bundle.remote.push import push as push_version

    store = ObjectStore(url)
    version = push_version(bundles, store, num_kept=keep)
    console.print_line(f"{version} is live in {url}")
    if follow:
        follow_and_push(bundles, store, interval_s, num_kept=keep)


def mirror(
    url: _Url,
    bundles: Annotated[Path, typer.Argument(help="Local bundle directory to make and update.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C or SIGTERM.")] = False,
    interval_s: Annotated[
        float, typer.Option(help="With --follow: seconds between two looks.", min=0.1)
    ] = 5.0,
    cache_size: Annotated[
        str | None,
        typer.Option(
            help="Bytes that the directory may take, such as 50GiB: older versions are removed for it. "
            "Default: the live version, the one before and those in use."
        ),
    ] = None,
    item_vectors: Annotated[
        str,
        typer.Option(
            help="As for re4 serve: index leaves out the item vectors of versions whose index is in Milvus."
        ),
    ] = "file",
) -> None:
    """Follow a bundle directory in object storage into a local one, which servers follow.

    Example: re4 mirror s3://models/shop bundles --follow
    """
    from re4.bundle.remote.mirror import Mirror
    from re4.bundle.remote.object_store import ObjectStore

    if item_vectors not in ("file", "index"):
        raise UsageError(f"--item-vectors {item_vectors}: file or index is needed")
    limit = None if cache_size is None else parse_bytes(cache_size, "--cache-size")
    followed = Mirror(ObjectStore(url), bundles, max_bytes=limit, maps_vectors=item_vectors == "file")
    if not follow:
        console.print_line(f"{followed.update()} is live in {bundles}")
        return

    def report(error: Exception) -> None:
        console.print_line(f"tried again in {interval_s:g} s: {error}")

    followed.follow(interval_s, threading.Event(), report)
