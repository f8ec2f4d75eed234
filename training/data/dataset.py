"""The prepared data set, opened by memory maps and checked: the contract between preparation and
training.

A prepared data set is a folder:

    dataset.json               schema version, name, counts, id kinds, the options used, what was
    dropped items.parquet              row order = item row: `item_id` (int64 or string), then
    catalogue columns {split}.items.npy          int32 [E], item rows, one user after another,
    oldest event first {split}.offsets.npy        int64 [U+1], user u owns
    items[offsets[u]:offsets[u+1]] {split}.num_history.npy    int32 [U], how many of a user's events
    are history; the rest are targets {split}_users.parquet      `user_id` (int64 or string), in the
    order of the offsets

for the splits train, valid and test. A train user has no targets: all events are history, and
training makes targets of them. A held-out user always has at least one of each.

Shape suffixes: U users, E events, N items, L history length; U1 is U + 1.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from re4.common.arrays import map_array
from re4.common.errors import DataError
from re4.training.data.layout import (
    INFO_FILE,
    ITEMS_FILE,
    REMEDY,
    SPLITS,
    TYPE_OF_KIND,
    DatasetInfo,
    IdKind,
    SplitInfo,
    SplitName,
    read_info,
)

__all__ = ["Dataset", "DatasetInfo", "Sequences", "SplitInfo", "SplitName"]

_CHUNK_IDS = 1 << 16
_COUNT_BLOCK = 1 << 24  # events counted at a time: np.bincount converts its input to int64


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """The event sequences of one split's users, oldest event first."""

    items_E: npt.NDArray[np.int32]
    """Item rows, one user after another."""
    offsets_U1: npt.NDArray[np.int64]
    """User u owns `items_E[offsets_U1[u]:offsets_U1[u + 1]]`."""
    num_history_U: npt.NDArray[np.int32]
    """How many of each user's first events are history; the rest are targets."""

    @property
    def num_users(self) -> int:
        """Users in this split."""
        return len(self.num_history_U)

    @property
    def num_events(self) -> int:
        """Events in this split, history and targets together."""
        return len(self.items_E)

    def info(self) -> SplitInfo:
        """Count the users, events and targets."""
        return SplitInfo(
            num_users=self.num_users,
            num_events=self.num_events,
            num_targets=self.num_events - int(self.num_history_U.sum(dtype=np.int64)),
        )

    def checksum(self) -> int:
        """Return the CRC-32 of all arrays."""
        checksum = 0
        for array in (self.items_E, self.offsets_U1, self.num_history_U):
            checksum = zlib.crc32(array.data, checksum)
        return checksum

    def only(self, chosen_U: npt.NDArray[np.bool_]) -> "Sequences":
        """Return the sequences of the chosen users."""
        lengths_U = np.diff(self.offsets_U1)
        return Sequences(
            items_E=self.items_E[np.repeat(chosen_U, lengths_U)],
            offsets_U1=np.concatenate(([0], np.cumsum(lengths_U[chosen_U]))),
            num_history_U=self.num_history_U[chosen_U],
        )

    def histories(self, max_length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return every user's last `max_length` items of the history, newest first.

        Args:
            max_length: L, the number of columns; at least 1.

        Returns:
            Item rows, int64 [U, L], padded at the end with 0; and the numbers of valid positions,
            int64 [U].
        """
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}; it must be at least 1")
        lengths_U = np.minimum(self.num_history_U, max_length).astype(np.int64)
        newest_U = self.offsets_U1[:-1] + self.num_history_U - 1
        users, positions = np.nonzero(np.arange(max_length) < lengths_U[:, None])
        rows_UL = np.zeros((self.num_users, max_length), dtype=np.int64)
        rows_UL[users, positions] = self.items_E[newest_U[users] - positions]
        return rows_UL, lengths_U


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An opened data set; its arrays are read-only memory maps."""

    path: Path
    """The folder."""
    info: DatasetInfo
    """The content of `dataset.json`."""
    train: Sequences
    """Users for training."""
    valid: Sequences
    """Held-out users for the choice of the epoch."""
    test: Sequences
    """Held-out users for the final evaluation."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a prepared data set and check that its files fit together.

        Raises:
            DataError: A file is missing, damaged, of another schema version, or contradicts
                another.
        """
        info = read_info(path)
        _check_table(path / ITEMS_FILE, "item_id", info.item_id_kind, info.num_items)
        sequences = {split: _open_split(path, split, info) for split in SPLITS}
        return cls(path=path, info=info, **sequences)

    @property
    def num_items(self) -> int:
        """N, the number of items; rows are 0..N-1."""
        return self.info.num_items

    @property
    def events_per_user(self) -> float:
        """Mean training events of a user."""
        return self.train.num_events / max(1, self.train.num_users)

    def split(self, name: SplitName) -> Sequences:
        """Return the sequences of a split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def items(self) -> pl.DataFrame:
        """Read the items: `item_id` first, then catalogue columns; row i is item row i."""
        with _reading(self.path / ITEMS_FILE) as file:
            return pl.read_parquet(file)

    def users(self, split: SplitName) -> pl.Series:
        """Read the external ids of a split's users, in the order of its sequences."""
        with _reading(self.path / f"{split}_users.parquet") as file:
            return pl.read_parquet(file)["user_id"]

    def item_counts(self) -> npt.NDArray[np.int64]:
        """Return the number of train events of every item, int64 [N]; counted once, read-only."""
        return self._item_counts_N

    @cached_property
    def checksums(self) -> dict[str, int]:
        """CRC-32 of each part that a training reads: the item ids, the train users and the valid users."""
        ids = 0
        with _reading(self.path / ITEMS_FILE) as file:
            items = pl.read_parquet(file, columns=["item_id"])
        for part in items.iter_slices(_CHUNK_IDS):
            ids = zlib.crc32("\0".join(map(str, part["item_id"])).encode(), ids)
        return {"items": ids, "train users": self.train.checksum(), "valid users": self.valid.checksum()}

    @cached_property
    def _item_counts_N(self) -> npt.NDArray[np.int64]:
        counts_N = np.zeros(self.num_items, dtype=np.int64)
        for start in range(0, self.train.num_events, _COUNT_BLOCK):
            block = self.train.items_E[start : start + _COUNT_BLOCK]
            counts_N += np.bincount(block, minlength=self.num_items)
        return counts_N


@contextmanager
def _reading(file: Path) -> Iterator[Path]:
    """Turn an error while a file of a data set is read into a DataError with the file's name."""
    try:
        yield file
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file} is missing or cannot be read: {first}; {REMEDY}") from error


def _check_table(file: Path, column: str, kind: IdKind, num_rows: int) -> None:
    with _reading(file):
        frame = pl.scan_parquet(file)
        names = frame.collect_schema()
        length = int(frame.select(pl.len()).collect().item())
    if not names.names() or names.names()[0] != column or names[column] != TYPE_OF_KIND[kind]:
        raise DataError(f"{file}: the first column must be {column!r} of kind {kind}; {REMEDY}")
    if length != num_rows:
        raise DataError(f"{file} has {length:,} rows where {INFO_FILE} says {num_rows:,}; {REMEDY}")


def _open_split(path: Path, split: SplitName, info: DatasetInfo) -> Sequences:
    sequences = Sequences(
        items_E=_open_array(path / f"{split}.items.npy", np.int32),
        offsets_U1=_open_array(path / f"{split}.offsets.npy", np.int64),
        num_history_U=_open_array(path / f"{split}.num_history.npy", np.int32),
    )
    _check_offsets(path / f"{split}.offsets.npy", sequences)
    _check_history(path / f"{split}.num_history.npy", sequences, held_out=split != "train")
    items_E = sequences.items_E
    if len(items_E) and (items_E.min() < 0 or items_E.max() >= info.num_items):
        raise DataError(
            f"{path / f'{split}.items.npy'} holds item rows {items_E.min():,} to {items_E.max():,}; "
            f"rows must be 0 to {info.num_items - 1:,}; {REMEDY}"
        )
    counts = sequences.info()
    if counts != info.splits[split]:
        raise DataError(f"{path}: {split} has {counts} where {INFO_FILE} says {info.splits[split]}; {REMEDY}")
    _check_table(path / f"{split}_users.parquet", "user_id", info.user_id_kind, sequences.num_users)
    return sequences


def _open_array(file: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    with _reading(file):
        array = map_array(file)
    if array.ndim != 1 or array.dtype != dtype:
        raise DataError(
            f"{file} holds {array.dtype} {list(array.shape)}; it must be one-dimensional "
            f"{np.dtype(dtype)}; {REMEDY}"
        )
    return array


def _check_offsets(file: Path, sequences: Sequences) -> None:
    offsets_U1 = sequences.offsets_U1
    if len(offsets_U1) != sequences.num_users + 1:
        raise DataError(
            f"{file} has {len(offsets_U1):,} entries for {sequences.num_users:,} users; one more than users "
            f"is right; {REMEDY}"
        )
    if offsets_U1[0] != 0 or offsets_U1[-1] != sequences.num_events:
        raise DataError(
            f"{file} runs from {offsets_U1[0]:,} to {offsets_U1[-1]:,}; it must run from 0 to the "
            f"{sequences.num_events:,} events of the items file; {REMEDY}"
        )
    if (offsets_U1[1:] <= offsets_U1[:-1]).any():
        raise DataError(f"{file} does not rise from user to user; every user has an event; {REMEDY}")


def _check_history(file: Path, sequences: Sequences, *, held_out: bool) -> None:
    num_events_U = np.diff(sequences.offsets_U1)
    num_history_U = sequences.num_history_U
    if not held_out and (num_history_U != num_events_U).any():
        raise DataError(f"{file}: a train user's events must all be history; {REMEDY}")
    if held_out and ((num_history_U < 1) | (num_history_U >= num_events_U)).any():
        raise DataError(f"{file}: a held-out user needs at least one history event and one target; {REMEDY}")
