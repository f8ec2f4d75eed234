"""The subcommand `re4 items add`: items of JSON lines or of a table, made live without a rebuild."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeAlias

import typer

from re4.bundle.remote.options import manifest_alone, takes_url
from re4.common import console
from re4.common.errors import RequestError, UsageError

if TYPE_CHECKING:
    from re4.bundle.live_items.records import Upsert

_COMMIT_ITEMS = 1_000
_ITEM_KEYS = {"id", "attributes", "vector"}
_VECTOR = "vector"

_Item: TypeAlias = tuple[str, Any, Mapping[str, Any], Any]
"""Its place in the file, for error messages; id, attributes, and vector."""


@takes_url(live_files=manifest_alone)
def add(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON lines, one item each, - for those of standard input; or a table: parquet, csv, tsv.",
            show_default=False,
        ),
    ],
    bundles: Annotated[Path, typer.Option(help="Bundle directory that the servers follow, or s3://….")],
    item_column: Annotated[str, typer.Option(help="A table's column of item ids.")] = "item_id",
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="A table's column to keep as an attribute; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False,
) -> None:
    """Add items, or replace all facts about items, without a rebuild.

    Each line is one item, such as {"id": "SKU-17", "attributes": {"title":
    "Fargo", "genre": ["drama", "crime"], "year": 1996}}. A "vector" is optional: a new item
    gets one from its attributes. Running servers on the directory answer
    with the items within seconds, and the next rebuild takes them in.

    Of a table such as the catalogue of an export, each row is one item, and
    each column with texts, numbers, booleans, dates or lists of those is an
    attribute; a column "vector" holds lists of numbers.

    Items are written in commits of 1,000. An item that cannot be stored ends
    the command; the commits before it count.

    Example: re4 items add new.jsonl --bundles bundles

    Example: re4 items add new.parquet --bundles bundles --item-column sku
    """
    from re4.bundle.live_items.writer import append_changes

    num_items = sequence = 0
    with ExitStack() as stack:
        if file.suffixes[-1:] in ([".parquet"], [".csv"], [".tsv"]) or file.suffix == ".gz" or file.is_dir():
            items = _items_of_table(file, item_column, columns)
        else:
            items = _items_of_lines(stack.enter_context(_opened(file)), str(file))
        for batch in _batches(_upserts(items, bundles)):
            sequence = append_changes(bundles, batch)
            num_items += len(batch)
    if as_json:
        console.print_json({"num_items": num_items, "sequence": sequence})
        return
    console.print_line(
        f"{console.number_of(num_items, 'item')} added or replaced, up to change {sequence}. "
        "Servers follow within seconds"
    )


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    if str(file) == "-":
        yield sys.stdin
        return
    try:
        opened = file.open(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
    with opened:
        yield opened


def _items_of_lines(lines: Iterable[str], where: str) -> Iterator[_Item]:
    """Yield the items of JSON lines."""
    try:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{where}, line {number}"
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{place}: not JSON ({error})") from None
            attributes = item.get("attributes", {}) if isinstance(item, dict) else None
            if not isinstance(attributes, dict) or "id" not in item or not item.keys() <= _ITEM_KEYS:
                raise UsageError(f'{place}: an item is {{"id": …, "attributes": {{…}}, "vector": […]}}')
            yield place, item["id"], attributes, item.get("vector")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 ({error})") from None


def _items_of_table(file: Path, item_column: str, columns: Sequence[str] | None) -> Iterator[_Item]:
    """Yield the items of a table, with the values that an export would give them."""
    from re4.exporting.catalogue.attributes import describes, item_texts
    from re4.training.data.catalogue import read_catalogue
    from re4.training.data.tables.row_store import in_memory, pieces

    rows = read_catalogue(file, item_column, in_memory).rows
    schema = rows.collect_schema()
    others = [name for name in schema if name not in ("item_id", _VECTOR)]
    wanted = [name for name in others if describes(schema[name])] if columns is None else list(columns)
    for name in wanted:
        if name not in others or not describes(schema[name]):
            raise UsageError(
                f"{file}: column {name!r} cannot be an attribute; those that can are "
                f"{', '.join(map(repr, filter(lambda each: describes(schema[each]), others))) or 'none'}"
            )
    number = 0
    for piece in pieces(rows.select("item_id", *wanted, *([_VECTOR] if _VECTOR in schema else []))):
        texts = {name: item_texts(piece[name]) for name in wanted}
        vectors = piece[_VECTOR].to_list() if _VECTOR in schema else [None] * len(piece)
        for place, (id_, vector) in enumerate(zip(piece["item_id"].to_list(), vectors, strict=True)):
            number += 1
            attributes = {name: values[place] for name, values in texts.items() if values[place]}
            yield f"{file}, row {number}", id_, attributes, vector


def _upserts(items: Iterable[_Item], bundles: Path) -> Iterator["Upsert"]:
    """Yield items as changes, checked against the live version."""
    from re4.bundle.layout import IS_COLD
    from re4.bundle.live_items.records import checked_upsert
    from re4.bundle.publishing.current import live_version
    from re4.bundle.verify import read_manifest

    manifest = read_manifest(live_version(bundles))
    for place, id_, attributes, vector in items:
        if IS_COLD in attributes:
            raise UsageError(f"{place}: the attribute {IS_COLD!r} is set by servers; leave it out")
        try:
            yield checked_upsert(
                id_,
                attributes,
                vector,
                kind=manifest.items.id_kind,
                space=manifest.items.space,
                embedding_dim=manifest.model.embedding_dim,
            )
        except (RequestError, TypeError) as error:
            raise UsageError(f"{place}: {error}") from None


def _batches(items: Iterable["Upsert"]) -> Iterator[list["Upsert"]]:
    batch: list[Upsert] = []
    for item in items:
        batch.append(item)
        if len(batch) == _COMMIT_ITEMS:
            yield batch
            batch = []
    if batch:
        yield batch
