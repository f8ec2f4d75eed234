"""The users of a bulk job: rows of parquet files, or the users of a prepared data set.

Users are numbered from 0. The numbers stay the same while a job is stopped and continued, which `identity`
verifies.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.common.errors import DataError, UsageError
from re4.common.files import crc32_of, replacing
from re4.serving.histories.store import HistoryStore
from re4.training.data.dataset import Dataset
from re4.training.data.layout import INFO_FILE, SPLITS, read_info

USER_ID: Final = "user_id"
HISTORY: Final = "history"
EXCLUDE: Final = "exclude"
_INTEGERS: Final = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)


class UserRows(NamedTuple):
    """Some consecutive users."""

    user_ids: pl.Series
    """Texts or integers, as they came."""
    histories: pl.Series | None
    """A list of item ids for each user, oldest first; None for none."""
    excluded: pl.Series | None = None
    """A list of item ids that must not be among the candidates of each user; None for none."""


class Users(Protocol):
    """A numbered list of users. It can be sent to another process."""

    @property
    def num_users(self) -> int:
        """Number of users."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """JSON that differs where the users or their histories have changed."""
        ...

    def read(self, start: int, stop: int) -> UserRows:
        """Return the users `start` to `stop - 1`.

        Raises:
            DataError: a file cannot be read.
        """
        ...


@dataclass(frozen=True)
class ParquetUsers:
    """Users in parquet: a column `user_id`, and columns `history` and `exclude` of lists, where there are."""

    path: Path
    """A file, or a folder whose files `*.parquet` are read in the order of their names."""
    files: tuple[Path, ...] = field(init=False)
    columns: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Read the schema.

        Raises:
            DataError: there is no such file, or a column is missing or of another type.
        """
        files = tuple(sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path])
        if not files:
            raise DataError(f"{self.path} has no files *.parquet")
        try:
            columns = dict(pl.read_parquet_schema(files[0]))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{files[0]} cannot be read as parquet: {error}") from None
        object.__setattr__(self, "files", files)
        object.__setattr__(self, "columns", columns)
        if not _is_id(columns.get(USER_ID)):
            raise DataError(
                f"{files[0]} has the columns {', '.join(columns)}; a column {USER_ID} of texts or integers "
                f"is needed; columns {HISTORY} and {EXCLUDE} of lists of item ids are read where there are"
            )
        for name in (HISTORY, EXCLUDE):
            kind = columns.get(name, pl.List(pl.String))
            if not (isinstance(kind, pl.List) and _is_id(kind.inner)):
                raise DataError(
                    f"{files[0]}: the column {name} is of type {kind}; it must be a list of texts or integers"
                )

    @property
    def has_histories(self) -> bool:
        """Whether the files hold histories."""
        return HISTORY in self.columns

    @cached_property
    def num_users(self) -> int:
        """Number of users."""
        return int(self._select(pl.len()).item())

    @property
    def identity(self) -> dict[str, Any]:
        """Name, size and time of each file."""
        facts = [(file.name, file.stat()) for file in self.files]
        return {"users": [[name, each.st_size, each.st_mtime_ns] for name, each in facts]}

    def read(self, start: int, stop: int) -> UserRows:
        """Return the users `start` to `stop - 1`."""
        wanted = [name for name in (USER_ID, HISTORY, EXCLUDE) if name in self.columns]
        table = self._collect(pl.scan_parquet(list(self.files)).select(wanted).slice(start, stop - start))
        return UserRows(*(table[name] if name in wanted else None for name in (USER_ID, HISTORY, EXCLUDE)))  # type: ignore[arg-type]

    def _select(self, expression: pl.Expr) -> pl.DataFrame:
        return self._collect(pl.scan_parquet(list(self.files)).select(expression))

    def _collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        try:
            return frame.collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from None


@dataclass(frozen=True)
class DatasetUsers:
    """All users of a prepared data set; a history is all events of a user, targets too."""

    path: Path

    def __post_init__(self) -> None:
        """Refuse a folder that is no prepared data set."""
        read_info(self.path)

    @cached_property
    def _dataset(self) -> Dataset:
        return Dataset.open(self.path)

    @cached_property
    def _item_ids(self) -> pl.Series:
        return self._dataset.items()["item_id"]

    @property
    def num_users(self) -> int:
        """Number of users."""
        return sum(self._dataset.split(split).num_users for split in SPLITS)

    @property
    def identity(self) -> dict[str, Any]:
        """Checksum of the description of the data set, which holds its counts and sources."""
        return {"dataset": crc32_of(self.path / INFO_FILE)}

    def read(self, start: int, stop: int) -> UserRows:
        """Return the users `start` to `stop - 1`."""
        ids, histories = [], []
        for split in SPLITS:
            sequences = self._dataset.split(split)
            first, last = max(0, start), min(stop, sequences.num_users)
            if first < last:
                ends = sequences.offsets_U1[first : last + 1]
                items = self._item_ids.gather(sequences.items_E[ends[0] : ends[-1]])
                histories.append(to_lists(items, np.diff(ends)))
                ids.append(self._dataset.users(split)[first:last])
            start, stop = start - sequences.num_users, stop - sequences.num_users
        return UserRows(pl.concat(ids), pl.concat(histories))


def to_lists(values: pl.Series, lengths_U: NDArray[np.int64]) -> pl.Series:
    """Return a column of lists: the values, cut into lists of these lengths."""
    num_users, longest = len(lengths_U), int(lengths_U.max())
    if not longest:
        return pl.Series([[]] * num_users, dtype=pl.List(values.dtype))
    if lengths_U.min() < longest:  # padded with the first value, then cut
        places = np.zeros((num_users, longest), np.int64)
        places[np.arange(longest) < lengths_U[:, None]] = np.arange(len(values))
        padded = values.gather(places.reshape(-1)).reshape((num_users, longest)).arr.to_list()
        table = pl.DataFrame({"padded": padded, "length": lengths_U})
        return table.select(pl.col("padded").list.head(pl.col("length"))).to_series()
    return values.reshape((num_users, longest)).arr.to_list()


def write_users_of(store: HistoryStore, path: Path) -> None:
    """Write the ids of all users of a store to a file for `ParquetUsers`.

    Raises:
        HistoryStoreError: the store cannot be used.
    """
    with replacing(path) as part:
        pl.DataFrame({USER_ID: pl.Series(_user_ids(store), dtype=pl.String)}).write_parquet(part)


def check_some(users: Users, source: str) -> None:
    """Refuse a source without users.

    Raises:
        UsageError: there is no user.
    """
    if not users.num_users:
        raise UsageError(f"{source} has no users, so there is nothing to do")


def _user_ids(store: HistoryStore) -> Iterator[str]:
    for user_id, _ in store.users():
        yield user_id


def _is_id(kind: Any) -> bool:
    return kind == pl.String or kind in _INTEGERS
