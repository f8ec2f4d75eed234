"""Write a prepared data set, whole or not at all.

The files are written to a hidden folder beside the destination, opened and checked there, and then
moved. After a kill at any moment the destination is absent or complete; the hidden folder is
removed when the next data set is written beside it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

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
    IdKind,
    SplitInfo,
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
    """Write a data set that is in memory: see `write_slabs`.

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
    return write_slabs(
        path,
        items=items,
        splits={split: sequences[split].info() for split in SPLITS},
        user_id_kind=kind_of(users["train"]),
        slabs=[{split: (sequences[split], users[split]) for split in SPLITS}],
        prepared=prepared,
        dropped=dropped,
    )


Slab: TypeAlias = Mapping[SplitName, tuple[Sequences, pl.Series]]
"""Consecutive users of each split: their sequences and their ids."""


def write_slabs(
    path: Path,
    *,
    items: pl.DataFrame,
    splits: Mapping[SplitName, SplitInfo],
    user_id_kind: IdKind,
    slabs: Iterable[Slab],
    prepared: Mapping[str, JsonValue],
    dropped: Mapping[str, int],
) -> Dataset:
    """Write a data set under a temporary name beside `path`, check it, and rename it into place.

    Args:
        path: The destination, absent or an empty folder.
        items: `item_id` first (Int64 or String), row order = item row.
        splits: The counts of every split.
        user_id_kind: The kind of the user ids.
        slabs: The users of every split, in order. One slab is in memory at a time, without the ids.
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
        user_id_kind=user_id_kind,
        splits=dict(splits),
        prepared=dict(prepared),
        dropped=dict(dropped),
    )
    if items["item_id"].n_unique() != len(items):
        raise DataError("an item id occurs twice among the items; every item needs a row of its own")
    with staging_folder(path.parent, _PREFIX) as staging:
        part = staging / "dataset"
        part.mkdir()
        items.write_parquet(part / ITEMS_FILE)
        _write_sequences(part, info, slabs)
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


def _write_sequences(folder: Path, info: DatasetInfo, slabs: Iterable[Slab]) -> None:
    user_ids: dict[SplitName, list[pl.Series]] = {split: [] for split in SPLITS}
    num_events = dict.fromkeys(SPLITS, 0)
    with ExitStack() as files:
        items, offsets, num_history = (
            {
                split: files.enter_context(_array_file(folder / f"{split}.{name}.npy", dtype, length(counts)))
                for split, counts in info.splits.items()
            }
            for name, dtype, length in _ARRAYS
        )
        for split in SPLITS:
            offsets[split].write(bytes(8))
        for slab in slabs:
            for split, (sequences, some_ids) in slab.items():
                _write_array(items[split], sequences.items_E, np.int32)
                _write_array(offsets[split], sequences.offsets_U1[1:] + num_events[split], np.int64)
                _write_array(num_history[split], sequences.num_history_U, np.int32)
                num_events[split] += sequences.num_events
                user_ids[split].append(some_ids.alias("user_id"))
    for split, ids in user_ids.items():
        pl.concat(ids, rechunk=True).to_frame().write_parquet(folder / f"{split}_users.parquet")


_ARRAYS: Final[tuple[tuple[str, type[np.generic], Callable[[SplitInfo], int]], ...]] = (
    ("items", np.int32, lambda counts: counts.num_events),
    ("offsets", np.int64, lambda counts: counts.num_users + 1),
    ("num_history", np.int32, lambda counts: counts.num_users),
)
"""Name, type and length of the arrays of a split."""


def _array_file(path: Path, dtype: type[np.generic], length: int) -> BinaryIO:
    """Open a file of an array, with the header that `np.save` writes."""
    file = path.open("wb")
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (length,),
    }
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _write_array(file: BinaryIO, array: npt.NDArray[Any], dtype: type[np.generic]) -> None:
    file.write(np.ascontiguousarray(array, dtype=dtype).data)
