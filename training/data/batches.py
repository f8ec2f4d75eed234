"""Training batches: in each epoch, every event after a user's first one is the place of an example.

The history of an example is the up to L events before its place, without the events that history
dropout removes. Its target is the event at the place or, with `next_n` = n, a random one of the n
events from there on, as far as the user's training events go. A batch is gathered from the
memory-mapped events when it is needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from re4.common.errors import DataError
from re4.training.data.dataset import Sequences


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The examples of one step, the longest history first, so that blocks of neighbours have little
    padding."""

    rows_BL: Tensor
    """History as item rows, int64, newest first, padded at the end with 0."""

    lengths_B: Tensor
    """Valid positions of each history, int64, at least 1."""

    targets_B: Tensor
    """Row of the item that came next, or of one of the next n, int64."""

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device; to a GPU from pinned memory, so that the copy overlaps the previous step."""

        def moved(values: Tensor) -> Tensor:
            return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)

        return Batch(
            rows_BL=moved(self.rows_BL), lengths_B=moved(self.lengths_B), targets_B=moved(self.targets_B)
        )


class TrainingBatches:
    """The shuffled batches of an epoch; its last batch may be smaller."""

    def __init__(
        self,
        train: Sequences,
        *,
        max_history_length: int,
        batch_size: int,
        history_dropout: float = 0.0,
        next_n: int = 1,
    ) -> None:
        """Find the targets.

        Raises:
            DataError: no user has two events.
        """
        self._items_E = train.items_E
        self._offsets_U1 = np.asarray(train.offsets_U1)
        self._max_history_length = max_history_length
        self._batch_size = batch_size
        self._history_dropout = history_dropout
        self._next_n = next_n
        # Targets are numbered without the users' first events: an epoch keeps nothing but an order of them.
        starts_V = self._offsets_U1[:-1][np.diff(self._offsets_U1) > 0]
        self._first_target_V = starts_V - np.arange(len(starts_V))
        self._num_targets = train.num_events - len(starts_V)
        if not self._num_targets:
            raise DataError(
                "No user of the training split has two events, so there is nothing to learn from."
            )

    @property
    def num_examples(self) -> int:
        """Examples of one epoch."""
        return self._num_targets

    @property
    def num_steps(self) -> int:
        """Batches of one epoch."""
        return -(-self.num_examples // self._batch_size)

    def epoch(self, seed: Sequence[int], *, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, from the given step on.

        Order, dropout and targets depend on the seed and the step alone, so an epoch can be resumed
        at any step.
        """
        order = np.arange(self._num_targets, dtype=np.min_scalar_type(-self._num_targets))
        np.random.default_rng(seed).shuffle(order)
        for step in range(first_step, self.num_steps):
            places_B = order[step * self._batch_size : (step + 1) * self._batch_size].astype(np.int64)
            users_B = np.searchsorted(self._first_target_V, places_B, side="right")
            yield self._gather(places_B + users_B, np.random.default_rng([*seed, step + 1]))

    def _gather(self, events_B: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        users_B = np.searchsorted(self._offsets_U1, events_B, side="right") - 1
        first_B = self._offsets_U1[users_B]
        lengths_B = np.minimum(events_B - first_B, self._max_history_length)
        back_L = np.arange(1, lengths_B.max() + 1)
        valid_BL = back_L[None, :] <= lengths_B[:, None]
        events_BL = events_B[:, None] - np.where(valid_BL, back_L, 0)
        rows_BL = self._items_E[events_BL].astype(np.int64)
        if self._history_dropout:
            valid_BL = _drop(valid_BL, lengths_B, self._history_dropout, generator)
            # Remaining events move to the front, in their order.
            front_BL = np.argsort(~valid_BL, axis=1, kind="stable")
            rows_BL = np.take_along_axis(rows_BL, front_BL, axis=1)
            lengths_B = valid_BL.sum(axis=1)
            valid_BL = back_L[None, :] <= lengths_B[:, None]
        targets_B = events_B
        if self._next_n > 1:
            num_possible_B = np.minimum(self._next_n, self._offsets_U1[users_B + 1] - events_B)
            targets_B = events_B + generator.integers(0, num_possible_B)
        by_length = np.argsort(-lengths_B, kind="stable")
        rows_BL = np.where(valid_BL, rows_BL, 0)[by_length, : lengths_B.max()]
        return Batch(
            rows_BL=torch.from_numpy(rows_BL),
            lengths_B=torch.from_numpy(lengths_B[by_length]),
            targets_B=torch.from_numpy(self._items_E[targets_B[by_length]].astype(np.int64)),
        )


def _drop(
    valid_BL: NDArray[np.bool_], lengths_B: NDArray[np.int64], share: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Drop events at random, but keep a random one of a history that would lose all."""
    kept_BL = valid_BL & (generator.random(valid_BL.shape, dtype=np.float32) >= share)
    emptied = np.flatnonzero(~kept_BL.any(axis=1))
    kept_BL[emptied, generator.integers(0, lengths_B[emptied])] = True
    return kept_BL
