"""Held-out users of a prepared data set: their histories, and the items that they chose later."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from re4.common.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class HeldOutUser:
    """A user of the test split."""

    number: int
    user_id: str
    history: list[Any]
    """Item ids, oldest first."""
    later: list[Any]
    """Item ids of the later events, oldest first."""


class HeldOutUsers:
    """The users of a data set's test split."""

    def __init__(self, path: Path) -> None:
        """Open the data set.

        Raises:
            DataError: it cannot be read.
        """
        from re4.training.data.dataset import Dataset

        dataset = Dataset.open(path)
        self._sequences = dataset.test
        self._item_ids = dataset.items()["item_id"]
        self._user_ids = dataset.users("test")
        self.num_users = dataset.test.num_users

    def user(self, name: str) -> HeldOutUser:
        """Return a user by number, or by id with a leading `=`.

        Raises:
            RequestError: there is no such user.
        """
        if name.startswith("="):
            places = (self._user_ids.cast(str) == name[1:]).arg_true()
            if not len(places):
                raise RequestError(
                    f"held-out user: no user {name[1:]!r:.80} among the {self.num_users:,} of the test split"
                )
            number = int(places[0])
        elif name.isascii() and name.isdigit() and int(name) < self.num_users:
            number = int(name)
        else:
            raise RequestError(
                f"held-out user: {name!r:.80} is no number from 0 to {self.num_users - 1:,}, nor = and "
                "a user id"
            )
        start, stop = self._sequences.offsets_U1[number : number + 2].tolist()
        middle = start + int(self._sequences.num_history_U[number])
        rows = self._sequences.items_E
        return HeldOutUser(
            number=number,
            user_id=str(self._user_ids[number]),
            history=self._item_ids.gather(rows[start:middle].tolist()).to_list(),
            later=self._item_ids.gather(rows[middle:stop].tolist()).to_list(),
        )
