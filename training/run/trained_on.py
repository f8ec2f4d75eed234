"""The data sets that a run was trained on, itself or by the runs of its warm starts, and the
held-out users that none of these trainings has seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.common.files import crc32_of
from re4.training.data.dataset import Dataset
from re4.training.data.layout import SplitName
from re4.training.data.split import HASH_RULE, recorded_split

_TRAIN_USERS = "train_users.parquet"
_TRAIN_FILES = (_TRAIN_USERS, "train.items.npy")


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """One data set of a training, as `config.json` records it."""

    dataset: str | None = None
    """The folder; None where it is unknown."""
    split: dict[str, Any] | None = None
    """The rule of the split, with its seed or cuts; None where it is unknown."""
    crc32: dict[str, int] | None = None
    """Checksums of the files of its train users; None where they are unknown."""

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Describe an opened data set."""
        return cls(
            dataset=str(dataset.path.resolve()),
            split=recorded_split(dataset.info),
            crc32={name: crc32_of(dataset.path / name) for name in _TRAIN_FILES},
        )

    def train_users(self) -> pl.Series | None:
        """Return the ids of the train users; None where the files are gone or have changed."""
        if self.dataset is None or self.crc32 is None:
            return None
        folder = Path(self.dataset)
        try:
            if any(crc32_of(folder / name) != crc32 for name, crc32 in self.crc32.items()):
                return None
            return pl.read_parquet(folder / _TRAIN_USERS, glob=False)["user_id"]
        except (OSError, pl.exceptions.PolarsError):
            return None


@dataclass(frozen=True, kw_only=True, eq=False)
class UnseenUsers:
    """The held-out users of a split that no earlier training has seen."""

    is_unseen_U: NDArray[np.bool_]
    """For each user of the split, in its order."""
    unknown: Sequence[str]
    """Data sets of which it cannot be known whose users they trained on."""

    @property
    def num_seen(self) -> int:
        """Users that are left out."""
        return int((~self.is_unseen_U).sum())


def unseen_users(earlier: Sequence[TrainedOn], dataset: Dataset, split: SplitName) -> UnseenUsers:
    """Find the users of a held-out split that no training on the earlier data sets has seen.

    Nobody was seen by a training on the same train users, by one whose users were split by the same
    hash and seed, or where both data sets were split by time and the earlier first cut does not lie
    after the split's first target. Otherwise the ids of the train users decide; where these are
    gone, it cannot be known.
    """
    own = TrainedOn.of(dataset)
    ids = dataset.users(split)
    is_unseen_U = np.ones(len(ids), dtype=np.bool_)
    unknown = []
    for each in earlier:
        if each.crc32 == own.crc32 or _nobody_was_seen(each.split or {}, own.split or {}, split):
            continue
        theirs = each.train_users()
        if theirs is None:
            unknown.append(each.dataset or "a data set that is not recorded")
        elif theirs.dtype == ids.dtype:
            is_unseen_U &= ~ids.is_in(theirs.implode()).to_numpy()
        else:
            is_unseen_U &= ~ids.cast(pl.String).is_in(theirs.cast(pl.String).implode()).to_numpy()
    return UnseenUsers(is_unseen_U=is_unseen_U, unknown=unknown)


def _nobody_was_seen(earlier: dict[str, Any], own: dict[str, Any], split: SplitName) -> bool:
    if earlier.get("split_rule") == HASH_RULE:
        return earlier == own
    try:
        trained_until = datetime.fromisoformat(earlier["cuts"][0])
        return trained_until <= datetime.fromisoformat(own["cuts"][0 if split == "valid" else 1])
    except (KeyError, ValueError):
        return False
