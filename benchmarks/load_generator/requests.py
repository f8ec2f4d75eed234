"""The requests that a benchmark sends: real histories of a prepared data set, or generated ones.

A prepared data set is read by its files alone (`test.items.npy`, `test.offsets.npy`, `test.num_history.npy`,
`items.parquet`), so that this folder needs nothing of training.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest
from re4.common.errors import DataError, UsageError
from re4.protos.v1 import retrieval_pb2

IdList: TypeAlias = list[str] | list[int]

NUM_REQUESTS: Final = 2000
"""Different requests of a benchmark, sent in turn."""


@dataclass(frozen=True, kw_only=True)
class Histories:
    """Item ids of users, oldest first."""

    ids: Sequence[IdList]
    source: str
    """Where they come from, for the report."""

    def payloads(self, *, num_candidates: int, exclude_history: bool) -> list[bytes]:
        """Return serialised requests, one for each history."""
        return [
            retrieval_pb2.RetrieveRequest(
                history=item_ids(ids), num_candidates=num_candidates, exclude_history=exclude_history
            ).SerializeToString()
            for ids in self.ids
        ]


def item_ids(ids: IdList) -> retrieval_pb2.ItemIds:
    """Return a list of ids as a message of the contract."""
    values: list[Any] = list(ids)
    if values and isinstance(values[0], str):
        return retrieval_pb2.ItemIds(strings=values)
    return retrieval_pb2.ItemIds(ints=values)


def choose_histories(
    info: dict[str, Any], *, data: Path | None, ids: Path | None, bundles: Path | None, seed: int
) -> Histories:
    """Return histories from the first source given: a data set, a file of ids, or a bundle directory.

    Of the server's `Info`, `max_history_length` and `item_id_kind` are read.
    """
    max_length = int(info["max_history_length"])
    if data is not None:
        return real_histories(data, max_length=max_length, seed=seed)
    if ids is not None:
        known = read_ids(ids, kind=info["item_id_kind"])
        return generated_histories(
            len(known), lambda rows: [known[row] for row in rows], max_length=max_length, seed=seed
        )
    if bundles is not None:
        path = live_version(bundles)
        items = read_manifest(path).items
        lookup = ItemIds.open(path, items.id_kind, items.num_items)
        return generated_histories(items.num_items, lookup.ids, max_length=max_length, seed=seed)
    raise UsageError(
        "no item ids to ask with: give --data DIR (a prepared data set, real histories), --ids FILE "
        "(one id a line) or the server's --bundles DIR"
    )


def real_histories(data: Path, *, max_length: int, seed: int) -> Histories:
    """Return histories of a prepared data set's test users, at most the newest `max_length` items of each.

    The seed chooses the users where there are more than `NUM_REQUESTS`.
    """
    import polars as pl

    try:
        items_E, offsets_U1, num_history_U = (
            np.load(data / f"test.{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("items", "offsets", "num_history")
        )
        catalogue = pl.read_parquet(data / "items.parquet", columns=["item_id"])["item_id"]
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{data}: not a prepared data set ({error}). Prepare one: re4 data prepare --out {data}"
        ) from None
    num_users = len(num_history_U)
    if num_users == 0:
        raise DataError(f"{data}: has no test users. Prepare it again with held-out users")
    chosen = np.random.default_rng(seed).permutation(num_users)[:NUM_REQUESTS]
    histories = []
    for user in chosen.tolist():
        end = int(offsets_U1[user]) + int(num_history_U[user])
        rows = items_E[max(int(offsets_U1[user]), end - max_length) : end]
        histories.append(catalogue.gather(rows.tolist()).to_list())
    return Histories(
        ids=histories, source=f"real: the histories of {len(histories)} test users of {data.name}"
    )


def generated_histories(
    num_ids: int, ids_of: Callable[[NDArray[np.int64]], Iterable[Any]], *, max_length: int, seed: int
) -> Histories:
    """Return histories of 1 to `max_length` items drawn evenly; `ids_of` returns the ids of rows.

    Real users return to the same few items and these do not, which is harder on a CPU's caches.
    """
    if not num_ids:
        raise DataError("no item ids to make histories of: give a file with one id a line")
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, max_length, size=NUM_REQUESTS, endpoint=True)
    histories = [list(ids_of(rng.integers(num_ids, size=length))) for length in lengths]
    return Histories(ids=histories, source=f"generated: items drawn evenly from {num_ids:,} ids")


def read_ids(path: Path, *, kind: str) -> IdList:
    """Return the item ids of a text file, one a line, of kind "string" or "int"."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        return [int(line) for line in lines] if kind == "int" else lines
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {kind} ids, one a line: {error}") from None
