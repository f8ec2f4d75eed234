"""The subcommands `re4 data fetch` and `re4 data prepare`."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from re4.common.console import print_json, print_line, table
from re4.common.errors import UsageError
from re4.common.ray_cluster import Engine, RayAddress
from re4.settings.fields import option_name
from re4.training.data import DEFAULT_MAX_USER_EVENTS, DEFAULT_MIN_EVENTS, DEFAULT_SEED

if TYPE_CHECKING:
    from re4.training.data.dataset import Dataset
    from re4.training.data.layout import SplitName


class Format(StrEnum):
    """The form of the input."""

    EVENTS = "events"
    SEQUENCES = "sequences"


class SplitBy(StrEnum):
    """The way to separate train, valid and test."""

    USER = "user"
    TIME = "time"


def fetch(
    name: Annotated[str, typer.Argument(help="The data set: ml-100k, ml-1m, amazon-books or gowalla.")],
    out: Annotated[Path, typer.Option(help="The folder to write. Files that exist already are kept.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")] = False,
) -> None:
    """Fetch a public data set: events, a catalogue if it has one, and a note on its source and
    terms of use.

    An interrupted fetch continues where it stopped; known checksums and counts are checked.

    Example: re4 data fetch ml-100k --out ml-100k
    """
    from re4.training.data.sources.fetch import fetch as fetch_data_set

    fetched = fetch_data_set(name, out)
    if as_json:
        print_json(
            {
                "events": str(fetched.events),
                "catalogue": None if fetched.catalogue is None else str(fetched.catalogue),
                "source": str(fetched.source),
            }
        )
        return
    print_line(f"terms of use and source: {fetched.source}")
    words = ["re4 data prepare --events", str(fetched.events)]
    words += [] if fetched.catalogue is None else ["--catalogue", str(fetched.catalogue)]
    words += [fetched.prepare_options] if fetched.prepare_options else []
    print_line(f"next: {' '.join(words)} --out DATA")


def prepare(
    out: Annotated[Path, typer.Option(help="The folder to write. It must not exist yet, or be empty.")],
    events: Annotated[
        Path | None,
        typer.Option(
            help="The event log: .parquet, .csv, .tsv or .jsonl (the last three also .gz) with a user, an "
            "item and a timestamp in every row; or a folder of such files."
        ),
    ] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option(
            help="Descriptions of the items (title, genres, …), a row each: file or folder, like --events."
        ),
    ] = None,
    input_format: Annotated[
        Format,
        typer.Option(
            "--format", help="events: one --events file. sequences: --train, --valid and --test files."
        ),
    ] = Format.EVENTS,
    train: Annotated[
        Path | None, typer.Option(help="Ready-split train users: lines `user item item …`, oldest first.")
    ] = None,
    valid: Annotated[Path | None, typer.Option(help="Ready-split validation users, like --train.")] = None,
    test: Annotated[Path | None, typer.Option(help="Ready-split test users, like --train.")] = None,
    min_events: Annotated[
        int | None,
        typer.Option(
            help="Drop users and items with fewer events, repeatedly, until none are left. 1 drops "
            f"nothing. Default: {DEFAULT_MIN_EVENTS}; ready-split files are never filtered."
        ),
    ] = None,
    max_user_events: Annotated[
        int | None,
        typer.Option(
            help="Most events of a user, before anything is counted; older ones are dropped. Default: users "
            "with more than 1,000 events, and more than 10 times the 99th percentile of events a user, are "
            f"dropped as robots; of the others the newest {DEFAULT_MAX_USER_EVENTS:,} stay."
        ),
    ] = None,
    split: Annotated[
        SplitBy | None,
        typer.Option(
            help="user (default): 80% of users train, 10% validate, 10% test, by a hash of the id. time: "
            "about 80%, 10% and 10% of events lie before, between and after two cut times."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help=f"Seed of the hash of user ids. Default: {DEFAULT_SEED}.")
    ] = None,
    cuts: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="DATE DATE",
            help="The two cut times of --split time, as ISO 8601, instead of 80% and 90%.",
        ),
    ] = None,
    user_column: Annotated[str, typer.Option(help="The event log's column of user ids.")] = "user",
    item_column: Annotated[str, typer.Option(help="The event log's column of item ids.")] = "item",
    timestamp_column: Annotated[
        str, typer.Option(help="The event log's column of times: since 1970, ISO 8601, or dates.")
    ] = "timestamp",
    event_column: Annotated[
        str | None, typer.Option(help="The event log's column of types of events. Default: all count.")
    ] = None,
    event_types: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE,TYPE", help="The types of --event-column that count, such as purchase,click."
        ),
    ] = None,
    drop_invalid: Annotated[
        bool,
        typer.Option(
            "--drop-invalid",
            help="Drop, count and show damaged lines, events without a user, item or time, and times in "
            "another notation than that of most events. Without it, they stop the command.",
        ),
    ] = False,
    catalogue_item_column: Annotated[
        str | None, typer.Option(help="The catalogue's column of item ids. Default: as --item-column.")
    ] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="local (default): in the memory of this machine. ray: by a Ray cluster, each of whose nodes "
            "reads the log under the same path. The data set is the same."
        ),
    ] = None,
    ray_address: RayAddress = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Prepare a data set for training: filter, split, and number an event log's users and items.

    Ids stay exactly as they are given, integers or strings; "00123" is never taken for 123.

    Example: re4 data prepare --events events.csv --user-column visitor --out DATA

    Example: re4 data prepare --format sequences --train train.gz --valid valid.gz --test test.gz
    --out DATA
    """
    from re4.training.data.prepare import prepare_data, prepare_sequences

    for_events = {
        "min_events": min_events,
        "max_user_events": max_user_events,
        "split": split,
        "seed": seed,
        "cuts": cuts,
        "event_column": event_column,
        "event_types": None if event_types is None else event_types.split(","),
        "drop_invalid": drop_invalid or None,
        "engine": None if engine is None else engine.value,
        "ray_address": ray_address,
    }
    given: dict[str, Any] = {name: value for name, value in for_events.items() if value is not None}
    files = _sequence_files(input_format, {"events": events, **for_events}, train, valid, test)
    if events is None:
        dataset = prepare_sequences(
            files, out, catalogue=catalogue, catalogue_item_column=catalogue_item_column or item_column
        )
    else:
        dataset = prepare_data(
            events,
            out,
            catalogue=catalogue,
            user_column=user_column,
            item_column=item_column,
            timestamp_column=timestamp_column,
            catalogue_item_column=catalogue_item_column,
            **given,
        )
    _report(dataset, as_json)


def _sequence_files(
    input_format: Format,
    only_events: Mapping[str, Any],
    train: Path | None,
    valid: Path | None,
    test: Path | None,
) -> "dict[SplitName, Path]":
    """Check that the options fit the format; return the ready-split files, none for an event log."""
    only_sequences = {"train": train, "valid": valid, "test": test}
    foreign = only_sequences if input_format == Format.EVENTS else only_events
    given = [option_name(name) for name, value in foreign.items() if value is not None]
    if given:
        other = Format.SEQUENCES if input_format == Format.EVENTS else Format.EVENTS
        raise UsageError(
            f"{', '.join(given)} cannot be used with --format {input_format}; add --format {other}, "
            "or leave it out"
        )
    if input_format == Format.EVENTS:
        if only_events["events"] is None:
            raise UsageError(
                "name the event log with --events FILE, or ready-split files with --format sequences"
            )
        return {}
    if train is None or valid is None or test is None:
        missing = [option_name(name) for name, value in only_sequences.items() if value is None]
        raise UsageError(f"--format sequences also needs {', '.join(missing)}")
    return {"train": train, "valid": valid, "test": test}


def _report(dataset: "Dataset", as_json: bool) -> None:
    from dataclasses import asdict

    info = dataset.info
    if as_json:
        print_json({"path": str(dataset.path), **asdict(info)})
        return
    table(
        f"{info.name}: {info.num_items:,} items ({info.item_id_kind} ids)",
        ("split", "users", "events", "of these targets"),
        [
            (split, f"{counts.num_users:,}", f"{counts.num_events:,}", f"{counts.num_targets:,}")
            for split, counts in info.splits.items()
        ],
    )
    noticed = [(reason.replace("_", " "), f"{number:,}") for reason, number in info.dropped.items() if number]
    if noticed:
        table("Dropped or noticed", ("what", "how many"), noticed)
    if "advice" in info.prepared:
        print_line(str(info.prepared["advice"]))
    if "timestamp_notation" in info.prepared:
        first, last = info.prepared["first_event"], info.prepared["last_event"]
        print_line(f"timestamps: {info.prepared['timestamp_notation']}, from {first} to {last}")
    print_line(f"next: re4 train {dataset.path} --out RUN")
