"""Write a prepared data set, whole or not at all.

The files are written to a hidden folder beside the destination, opened and checked there, and then
moved. After a kill at any moment the destination is absent or complete; the hidden folder is
removed when the next data set is written beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import JsonValue

from re4.common.errors import DataError
from re4.common.file_lock import staging_folder
from re4.common.files import sync
from re4.training.data.dataset import Dataset, Sequences
from re4.training.data.layout import (
    INFO_FILE,
    ITEMS_FILE,
    SCHEMA_VERSION,
    SPLITS,
    DatasetInfo,
    SplitName,
    kind_of,
)

_PREFIX: Final = ".preparing-"


def refuse_existing(path: Path) -> None:
    """Refuse a destination that is not empty, because no data set is ever overwritten.

    Raises:
        DataError: `path` is a file or a folder that is not empty.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise DataError(f"{path} exists and is not a folder; choose another --out")
    if path.is_dir() and next(path.iterdir(), None) is not None:
        raise DataError(f"{path} exists and is not empty; choose another --out, or remove it first")


def write_dataset(
    path: Path,
    *,
    items: pl.DataFrame,
    sequences: Mapping[SplitName, Sequences],
    users: Mapping[SplitName, pl.Series],
    prepared: Mapping[str, JsonValue],
    dropped: Mapping[str, int],
) -> Dataset:
    """Write a data set under a temporary name beside `path`, check it, and rename it into place.

    Args:
        path: The destination, absent or an empty folder.
        items: `item_id` first (Int64 or String), row order = item row.
        sequences: The sequences of every split.
        users: The user ids of every split (Int64 or String), in the order of its sequences.
        prepared: The options used and the findings about the input, for `dataset.json`.
        dropped: Counts by reason, for `dataset.json`.

    Returns:
        The data set, opened.

    Raises:
        DataError: The destination is not free, or the content is not a valid data set.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION,
        name=path.resolve().name,
        num_items=len(items),
        item_id_kind=kind_of(items["item_id"]),
        user_id_kind=kind_of(users["train"]),
        splits={split: sequences[split].info() for split in SPLITS},
        prepared=dict(prepared),
        dropped=dict(dropped),
    )
    if items["item_id"].n_unique() != len(items):
        raise DataError("an item id occurs twice among the items; every item needs a row of its own")
    with staging_folder(path.parent, _PREFIX) as staging:
        part = staging / "dataset"
        part.mkdir()
        items.write_parquet(part / ITEMS_FILE)
        for split in SPLITS:
            _save_array(part / f"{split}.items.npy", sequences[split].items_E, np.int32)
            _save_array(part / f"{split}.offsets.npy", sequences[split].offsets_U1, np.int64)
            _save_array(part / f"{split}.num_history.npy", sequences[split].num_history_U, np.int32)
            users[split].alias("user_id").to_frame().write_parquet(part / f"{split}_users.parquet")
        text = json.dumps(asdict(info), ensure_ascii=False, indent=2) + "\n"
        (part / INFO_FILE).write_text(text, encoding="utf-8")
        Dataset.open(part)
        for file in part.iterdir():
            sync(file)
        sync(part)
        try:
            part.rename(path)
        except OSError as error:
            raise DataError(f"{path} could not be put in place: {error}; choose another --out") from error
        sync(path.parent)
    return Dataset.open(path)


def _save_array(file: Path, array: npt.NDArray[Any], dtype: type[np.generic]) -> None:
    np.save(file, np.ascontiguousarray(array, dtype=dtype), allow_pickle=False)
