"""The description of a prepared data set, `dataset.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import polars as pl
from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from re4.common.errors import DataError

SCHEMA_VERSION = 1
INFO_FILE = "dataset.json"
ITEMS_FILE = "items.parquet"

TYPE_OF_KIND: Mapping[str, pl.DataType] = {"int": pl.Int64(), "string": pl.String()}

SplitName = Literal["train", "valid", "test"]
IdKind = Literal["int", "string"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

REMEDY = "prepare the data set again with `re4 data prepare`"


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """The counts of one split."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    num_users: int
    """Users in the split."""
    num_events: int
    """All events of these users, history and targets together."""
    num_targets: int
    """The events that are targets; 0 for train."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The content of `dataset.json`."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    schema_version: int
    """The version of this folder's layout."""
    name: str
    """The folder's name when the data set was prepared."""
    num_items: int
    """Rows of `items.parquet`."""
    item_id_kind: IdKind
    """Whether external item ids are 64-bit integers or strings."""
    user_id_kind: IdKind
    """Whether external user ids are 64-bit integers or strings."""
    splits: dict[SplitName, SplitInfo]
    """Counts by split."""
    prepared: dict[str, JsonValue]
    """The options of the preparation, and findings about the input."""
    dropped: dict[str, int]
    """Counts of what was dropped or noticed, by reason."""


def kind_of(ids: pl.Series) -> IdKind:
    """Return the kind of the external ids in a column.

    Raises:
        DataError: The column is neither Int64 nor String.
    """
    for kind in cast(tuple[IdKind, ...], get_args(IdKind)):
        if ids.dtype == TYPE_OF_KIND[kind]:
            return kind
    raise DataError(f"ids in column {ids.name!r} are {ids.dtype}; they must be int64 or strings")


def read_info(path: Path) -> DatasetInfo:
    """Read the description of the data set in folder `path`.

    Raises:
        DataError: It is missing, of another schema version, or not what `DatasetInfo` describes.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; name the folder that `re4 data prepare --out` wrote")
    file = path / INFO_FILE
    try:
        text = file.read_text(encoding="utf-8")
        version = json.loads(text)["schema_version"]
    except FileNotFoundError:
        raise DataError(f"{path} is not a prepared data set: it has no {INFO_FILE}; {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {error!r}; {REMEDY}") from error
    if version != SCHEMA_VERSION:
        raise DataError(f"{file} has schema version {version}; this program reads {SCHEMA_VERSION}; {REMEDY}")
    try:
        info = TypeAdapter(DatasetInfo).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{file}: field {field!r}: {first['msg']}; {REMEDY}") from error
    missing = [split for split in SPLITS if split not in info.splits]
    if missing:
        raise DataError(f"{file} has no counts for {', '.join(missing)}; {REMEDY}")
    return info
