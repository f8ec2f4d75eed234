"""Read ready-split data: a file for each split, a user a line, `user item item …`, oldest first.

Fields are separated by blanks or tabs; a file may be gzipped.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from re4.common.errors import DataError
from re4.training.data.dataset import Sequences
from re4.training.data.layout import SPLITS, SplitName
from re4.training.data.split import num_held_out_history
from re4.training.data.tables.ids import encode, integers_if_canonical
from re4.training.data.tables.lines import numbered_lines
from re4.training.data.tables.open_table import check_file

_BLOCK = 1 << 20  # ids held as Python strings at a time


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """The content of three ready-split files, with item codes in place of item rows."""

    sequences: Mapping[SplitName, Sequences]
    """By split."""
    users: Mapping[SplitName, pl.Series]
    """External user ids (Int64 or String) of every split, in file order."""
    item_ids: pl.Series
    """External item ids (Int64 or String) by code, in the order of their first appearance."""
    dropped: Mapping[str, int]
    """Counts by reason."""


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """The content of one file, with ids as text."""

    users: pl.Series
    items: pl.Series
    lengths: list[int]


def read_sequences(files: Mapping[SplitName, Path], advance: Callable[[], None]) -> SplitFiles:
    """Read the three files of data that is split already.

    Ids are integers if all ids of that kind, in all three files, are canonical 64-bit integers;
    else strings. Held-out users with one event are dropped: they cannot have both history and a
    target.

    Args:
        files: The file of every split.
        advance: Called after each file.

    Raises:
        DataError: A file is missing, unreadable or empty, a line has no items, or a user has two
            lines.
    """
    lines: dict[SplitName, _Lines] = {}
    for split in SPLITS:
        lines[split] = _read(files[split])
        advance()
    users = integers_if_canonical(pl.concat([lines[split].users for split in SPLITS]))
    codes, item_ids = encode(integers_if_canonical(pl.concat([lines[split].items for split in SPLITS])))
    sequences: dict[SplitName, Sequences] = {}
    kept_users: dict[SplitName, pl.Series] = {}
    num_dropped = num_users = num_events = 0
    for split in SPLITS:
        lengths_U = np.array(lines[split].lengths, dtype=np.int64)
        history_U = lengths_U if split == "train" else num_held_out_history(lengths_U)
        kept_U = history_U > 0
        if not kept_U.any():
            raise DataError(f"{files[split]} has no user with two items or more; {split} would have no users")
        items_E = codes[num_events : num_events + int(lengths_U.sum())].to_numpy()
        sequences[split] = Sequences(
            items_E=items_E[np.repeat(kept_U, lengths_U)].astype(np.int32),
            offsets_U1=np.concatenate(([0], np.cumsum(lengths_U[kept_U]))),
            num_history_U=history_U[kept_U].astype(np.int32),
        )
        kept_users[split] = users[num_users : num_users + len(lengths_U)].filter(pl.Series(kept_U))
        num_dropped += int((~kept_U).sum())
        num_users += len(lengths_U)
        num_events += len(items_E)
    return SplitFiles(
        sequences=sequences,
        users=kept_users,
        item_ids=item_ids,
        dropped={"held_out_users_with_one_event": num_dropped},
    )


def _read(file: Path) -> _Lines:
    check_file(file)
    users: list[str] = []
    lengths: list[int] = []
    items: list[str] = []
    blocks: list[pl.Series] = []
    for number, fields in _fields(file):
        if len(fields) < 2:
            raise DataError(
                f"{file}, line {number:,}: user {fields[0]!r} has no items; a line is `user item item …`: "
                "correct or remove the line"
            )
        users.append(fields[0])
        lengths.append(len(fields) - 1)
        items.extend(fields[1:])
        if len(items) >= _BLOCK:
            blocks.append(pl.Series("item", items, dtype=pl.String))
            items = []
    if not users:
        raise DataError(f"{file} holds no lines of `user item item …`")
    names = pl.Series("user", users, dtype=pl.String)
    if names.n_unique() < len(names):
        twice = names.filter(~names.is_first_distinct())[0]
        raise DataError(f"{file}: user {twice!r} has more than one line; join a user's lines into one")
    items_E = pl.concat([*blocks, pl.Series("item", items, dtype=pl.String)])
    return _Lines(users=names, items=items_E, lengths=lengths)


def _fields(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of every line that is not blank."""
    for number, line in numbered_lines(file):
        fields = line.split()
        if fields:
            yield number, fields
