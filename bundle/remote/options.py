"""Subcommands on `--bundles` that also take an address in object storage."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, cast

_Command = TypeVar("_Command", bound=Callable[..., None])


def takes_url(
    version_of: Callable[[Path, dict[str, Any]], str | None] = lambda folder, given: None,
) -> Callable[[_Command], _Command]:
    """Let the parameter `bundles` of a subcommand be an address: the subcommand gets a local copy.

    Args:
        version_of: Returns the version whose files the subcommand needs beside those of the live one, from
            the local copy and the subcommand's arguments.
    """

    def decorate(command: _Command) -> _Command:
        @wraps(command)
        def run(*arguments: Any, **options: Any) -> None:
            from re4.bundle.remote.working_copy import bundle_directory

            given = dict(zip(signature(command).parameters, arguments, strict=False)) | options
            named = given.pop("bundles")
            with bundle_directory(named, version_of=lambda folder: version_of(folder, given)) as folder:
                command(bundles=folder, **given)

        return cast("_Command", run)

    return decorate


def named_version(_: Path, given: dict[str, Any]) -> str | None:
    """Return the argument `version`."""
    return given.get("version")


def version_to_go_back_to(folder: Path, given: dict[str, Any]) -> str | None:
    """Return the argument `version`; without it, the version before the live one."""
    from re4.bundle.publishing.rollback import version_before_live

    return given.get("version") or version_before_live(folder)
