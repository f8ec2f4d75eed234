"""The subcommands `re4 versions`, `re4 rollback` and `re4 prune`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from re4.bundle.remote.address import LiveFiles
from re4.bundle.remote.options import manifest_alone, takes_url, version_to_go_back_to
from re4.common import console
from re4.common.errors import BundleError, UsageError

if TYPE_CHECKING:
    from re4.bundle.publishing.versions import VersionFacts

_Bundles = Annotated[Path, typer.Argument(help="Bundle directory, as `re4 export` writes it, or s3://….")]
_AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]


@takes_url(live_files=lambda given: LiveFiles.ALL if given.get("verify") else LiveFiles.MANIFEST)
def versions(
    bundles: _Bundles,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte of every version, which reads all files.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """List the versions of a bundle directory, newest first, with the live one.

    Exit codes: 0, or 1 where --verify finds a version that cannot be used.

    Example: re4 versions bundles --verify
    """
    from re4.bundle.publishing.versions import list_versions

    found = list_versions(bundles, verify=verify)
    _print_versions(bundles, found, as_json=as_json)
    problems = [facts.name for facts in found if facts.problem]
    if verify and problems:
        raise BundleError(
            f"{bundles}: {len(problems)} of {len(found)} versions cannot be used: {', '.join(problems)}"
        )


def _print_versions(bundles: Path, found: list["VersionFacts"], *, as_json: bool) -> None:
    live = next((facts.name for facts in found if facts.is_live), None)
    if as_json:
        console.print_json({"live": live, "versions": [asdict(facts) for facts in found]})
        return
    console.table(
        f"{len(found)} versions in {bundles}",
        ["version", "", "model", "index", "items", "MB"],
        [[facts.name, *_columns(facts)] for facts in found],
    )
    for facts in found:
        if facts.problem:
            console.print_line(facts.problem)
    if live is None:
        console.print_line(
            f"{bundles}: CURRENT names none of these. Choose one: re4 rollback {bundles} VERSION"
        )


def _columns(facts: "VersionFacts") -> list[str]:
    state = ["live"] * facts.is_live + ["damaged"] * bool(facts.problem)
    about = [facts.model, facts.index, f"{facts.num_items:,}", f"{facts.num_bytes / 1e6:.1f}"]
    return [", ".join(state), *([""] * 4 if facts.problem else about)]


@takes_url(version_to_go_back_to, manifest_alone)
def rollback(
    bundles: _Bundles,
    version: Annotated[
        str | None,
        typer.Argument(
            help="Version to make live. Default: the one before the live one.", show_default=False
        ),
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Make another version live after a check of every byte. Running servers follow by themselves.

    Example: re4 rollback bundles

    Example: re4 rollback s3://models/shop
    """
    from re4.bundle.publishing.rollback import roll_back

    name = roll_back(bundles, version)
    if as_json:
        console.print_json({"live": name})
    else:
        console.print_line(f"{name} is live")


@takes_url()
def prune(
    bundles: _Bundles,
    keep: Annotated[
        int, typer.Option(help="Number of versions older than the live one that stay, for roll-backs.")
    ] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the versions to remove, and remove nothing.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """Remove old versions. The live version and newer ones always stay.

    Example: re4 prune bundles --keep 2 --dry-run
    """
    from re4.bundle.publishing.retention import prunable
    from re4.bundle.publishing.retention import prune as remove

    if keep < 0:
        raise UsageError(f"--keep {keep}: it must be 0 or more")
    names = (prunable if dry_run else remove)(bundles, num_kept=keep)
    if as_json:
        console.print_json({"would_remove" if dry_run else "removed": names})
        return
    for name in names:
        console.print_line(f"{name} {'would be' if dry_run else 'was'} removed")
    if not names:
        older = (
            f"at most {keep} versions are"
            if keep > 1
            else "one version at most is"
            if keep
            else "no version is"
        )
        console.print_line(f"nothing to remove: {older} older than the live one")
