"""Subcommands on `--bundles` that also take an address in object storage."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, cast

from re4.bundle.remote.address import LiveFiles

_Command = TypeVar("_Command", bound=Callable[..., None])


def takes_url(
    version_of: Callable[[Path, dict[str, Any]], str | None] = lambda folder, given: None,
    live_files: Callable[[dict[str, Any]], LiveFiles] = lambda given: LiveFiles.ALL,
) -> Callable[[_Command], _Command]:
    """Let the parameter `bundles` of a subcommand be an address: the subcommand gets a local copy.

    Args:
        version_of: Returns the version whose files the subcommand needs beside those of the live one, from
            the local copy and the subcommand's arguments.
        live_files: Returns the files of the live version that it needs, from the arguments. Others are not
            downloaded.
    """

    def decorate(command: _Command) -> _Command:
        @wraps(command)
        def run(*arguments: Any, **options: Any) -> None:
            from re4.bundle.remote.working_copy import bundle_directory

            given = dict(zip(signature(command).parameters, arguments, strict=False)) | options
            named = given.pop("bundles")
            with bundle_directory(
                named,
                version_of=lambda folder: version_of(folder, given),
                live_files=live_files(given),
            ) as folder:
                command(bundles=folder, **given)

        return cast("_Command", run)

    return decorate


def ids_alone(_: dict[str, Any]) -> LiveFiles:
    """Return that the ids of the live version are enough."""
    return LiveFiles.IDS


def manifest_alone(_: dict[str, Any]) -> LiveFiles:
    """Return that the manifest of the live version is enough."""
    return LiveFiles.MANIFEST


def named_version(_: Path, given: dict[str, Any]) -> str | None:
    """Return the argument `version`."""
    return given.get("version")


def version_to_go_back_to(folder: Path, given: dict[str, Any]) -> str | None:
    """Return the argument `version`; without it, the version before the live one."""
    from re4.bundle.publishing.rollback import version_before_live

    return given.get("version") or version_before_live(folder)
