"""The subcommands `re4 items`: hide, unhide and list; remove and repair."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from re4.bundle.remote.options import ids_alone, manifest_alone, takes_url
from re4.common import console
from re4.common.errors import BundleError, UsageError

if TYPE_CHECKING:
    from re4.bundle.ids.id_map import ItemIds

_Bundles = Annotated[Path, typer.Option(help="Bundle directory that the servers follow, or s3://….")]
_Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID…", help="Item ids, as in the event log.", show_default=False),
]
_File = Annotated[
    Path | None,
    typer.Option("--from", help="Text file with more ids, one a line.", show_default=False),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]

_NUM_NAMED = 5


@takes_url(live_files=ids_alone)
def hide(bundles: _Bundles, ids: _Ids = None, file: _File = None, as_json: _AsJson = False) -> None:
    """Keep items out of every answer until they are unhidden.

    Running servers on the directory follow within seconds, without a
    rebuild, a new version or a restart. Items stay hidden after rebuilds
    and roll-backs. They still count as history. Ids that the live version
    does not know are kept for later versions.

    Example: re4 items hide SKU-17 SKU-99 --bundles bundles
    """
    from re4.bundle.hidden_ids import change_hidden
    from re4.bundle.live_items.state import as_kind, read_live_state

    item_ids, wanted = _checked(bundles, ids, file)
    before, now = change_hidden(bundles, hide=wanted, kind=item_ids.kind)
    unknown = [id_ for id_, row in zip(wanted, item_ids.rows(wanted).tolist(), strict=True) if row < 0]
    with suppress(BundleError):  # damaged live items: hiding does not depend on them
        live = {as_kind(id_, item_ids.kind) for id_ in read_live_state(bundles).items} if unknown else ()
        unknown = [id_ for id_ in unknown if id_ not in live]
    already = set(before.of_kind(item_ids.kind)).intersection(wanted)
    if as_json:
        console.print_json(
            {"num_hidden": len(now.ids), "hidden": _without(wanted, already), "unknown": unknown}
        )
        return
    console.print_line(
        f"{console.number_of(len(wanted) - len(already), 'item')} hidden; {len(now.ids):,} in all. "
        "Servers follow within seconds"
    )
    if unknown:
        console.print_line(f"not in the live version, hidden in those that have them: {_named(unknown)}")


@takes_url(live_files=ids_alone)
def unhide(bundles: _Bundles, ids: _Ids = None, file: _File = None, as_json: _AsJson = False) -> None:
    """Show hidden items again. Running servers follow within seconds.

    Example: re4 items unhide SKU-17 --bundles bundles
    """
    from re4.bundle.hidden_ids import change_hidden

    item_ids, wanted = _checked(bundles, ids, file)
    before, now = change_hidden(bundles, unhide=wanted, kind=item_ids.kind)
    not_hidden = _without(wanted, set(before.of_kind(item_ids.kind)))
    if as_json:
        shown = _without(wanted, set(not_hidden))
        console.print_json({"num_hidden": len(now.ids), "unhidden": shown, "not_hidden": not_hidden})
        return
    console.print_line(
        f"{console.number_of(len(wanted) - len(not_hidden), 'item')} shown again; "
        f"{len(now.ids):,} still hidden"
    )
    if not_hidden:
        console.print_line(f"were not hidden: {_named(not_hidden)}")


@takes_url(live_files=manifest_alone)
def list_hidden(bundles: _Bundles, as_json: _AsJson = False) -> None:
    """List the hidden items, one a line.

    Example: re4 items list --bundles bundles > hidden.txt
    """
    from re4.bundle.hidden_ids import read_hidden

    hidden = read_hidden(bundles)
    if as_json:
        console.print_json({"num_hidden": len(hidden.ids), "hidden": list(hidden.ids)})
        return
    for id_ in hidden.ids:
        console.stdout_console.print(str(id_), markup=False)
    console.print_line(f"{console.number_of(len(hidden.ids), 'item')} hidden")


@takes_url(live_files=ids_alone)
def remove(bundles: _Bundles, ids: _Ids = None, file: _File = None, as_json: _AsJson = False) -> None:
    """Remove items from every answer, until they are added again.

    Running servers follow within seconds, and the next rebuild leaves the
    items out of its version. Unlike hidden items, removed ones are gone from
    the catalogue after the rebuild.

    Example: re4 items remove SKU-17 --bundles bundles
    """
    from re4.bundle.live_items.records import Removal
    from re4.bundle.live_items.writer import append_changes

    item_ids, wanted = _checked(bundles, ids, file)
    sequence = append_changes(bundles, [Removal(id_) for id_ in wanted])
    unknown = [id_ for id_, row in zip(wanted, item_ids.rows(wanted).tolist(), strict=True) if row < 0]
    if as_json:
        console.print_json({"num_items": len(wanted), "sequence": sequence, "not_in_version": unknown})
        return
    console.print_line(f"{console.number_of(len(wanted), 'item')} removed. Servers follow within seconds")
    if unknown:
        console.print_line(f"not in the live version, removed where they were added: {_named(unknown)}")


@takes_url(live_files=manifest_alone)
def repair(bundles: _Bundles, as_json: _AsJson = False) -> None:
    """Make the list of live items again, from what is intact of their segments.

    For a list or a segment that was damaged, such as by a disk: servers and
    writers name this command then. Records behind a damaged one are lost.

    Example: re4 items repair --bundles bundles
    """
    from re4.bundle.live_items.compaction import repair as repair_items

    found = repair_items(bundles)
    if as_json:
        console.print_json({"num_items": found.num_items, "damages": found.damages})
        return
    for damage in found.damages:
        console.print_line(damage)
    console.print_line(f"the state of {found.num_items:,} items is kept")


def _checked(bundles: Path, ids: list[str] | None, file: Path | None) -> tuple["ItemIds", list[Any]]:
    """Return the ids of the live version and the given ids, of its kind and unique."""
    from re4.bundle.ids.id_map import ItemIds
    from re4.bundle.ids.string_keys import MAX_ID_BYTES
    from re4.bundle.publishing.current import live_version
    from re4.bundle.verify import read_manifest

    words = list(ids or [])
    if file is not None:
        try:
            words += [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--from {file}: cannot be read ({error})") from None
    if not words:
        raise UsageError("which items? Name their ids, or a file of them with --from")
    path = live_version(bundles)
    items = read_manifest(path).items
    item_ids = ItemIds.open(path, items.id_kind, items.num_items)
    if items.id_kind == "string":
        if wrong := [word for word in words if not 1 <= len(word.encode(errors="replace")) <= MAX_ID_BYTES]:
            raise UsageError(f"item id {wrong[0]!r:.60}: an id has from 1 to {MAX_ID_BYTES} bytes")
        if wrong := [word for word in words if not word.isprintable() and _is_no_text(word)]:
            raise UsageError(f"item id {wrong[0]!r:.60}: not valid text; is the terminal's encoding UTF-8?")
        return item_ids, list(dict.fromkeys(words))
    try:
        numbers = list(dict.fromkeys(map(int, words)))
    except ValueError as error:
        raise UsageError(f"the ids of {bundles} are integers: {error}") from None
    if wrong_numbers := [number for number in numbers if not -(2**63) <= number < 2**63]:
        raise UsageError(f"item id {wrong_numbers[0]}: more than 64-bit integers hold")
    return item_ids, numbers


def _is_no_text(word: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in word)


def _without(ids: list[Any], others: set[Any]) -> list[Any]:
    return [id_ for id_ in ids if id_ not in others]


def _named(ids: list[Any]) -> str:
    more = f" and {len(ids) - _NUM_NAMED:,} more" if len(ids) > _NUM_NAMED else ""
    return ", ".join(map(str, ids[:_NUM_NAMED])) + more
