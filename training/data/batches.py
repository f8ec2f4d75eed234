"""Training batches: in each epoch, every event after a user's first one is the place of an example.

The history of an example is the up to L events before its place, without the events that history
dropout removes. Its target is the event at the place or, with `next_n` = n, a random one of the n
events from there on, as far as the user's training events go. A batch is gathered from the
memory-mapped events when it is needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    """Row of the item that came next, or of one of the next n, int64: one an example or, at every position,
    one for each valid position, by example and then newest first."""

    is_every_position: bool = False
    """Whether every position of a history has a target, and not the newest one alone."""

    def targets_of(self, block: slice) -> slice:
        """Return the places of the targets of a block of examples."""
        if not self.is_every_position:
            return block
        ends = [0, *self.lengths_B.cumsum(0).tolist()]
        return slice(ends[block.start], ends[block.stop])

    def part(self, number: int, num_parts: int) -> "Batch":
        """Return one of `num_parts` parts: each has every `num_parts`-th example, in their order."""
        own = slice(number, None, num_parts)
        lengths_B = self.lengths_B[own]
        own_targets: slice | Tensor = own
        if self.is_every_position:
            places_B = torch.arange(len(self.lengths_B), device=self.lengths_B.device)
            own_targets = places_B.repeat_interleave(self.lengths_B) % num_parts == number
        return replace(
            self,
            rows_BL=self.rows_BL[own, : int(lengths_B.max()) if len(lengths_B) else 0],
            lengths_B=lengths_B,
            targets_B=self.targets_B[own_targets],
        )

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device; to a GPU from pinned memory, so that the copy overlaps the previous step."""

        def moved(values: Tensor) -> Tensor:
            return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)

        return replace(
            self,
            rows_BL=moved(self.rows_BL),
            lengths_B=moved(self.lengths_B),
            targets_B=moved(self.targets_B),
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


class WindowBatches(TrainingBatches):
    """The batches of an epoch that trains at every position: windows of up to L events of a user.

    A window ends before the user's last event; each of its events has a target after it. The windows
    of a user that has more than one are cut at other places in each epoch. A batch has some
    `batch_size` targets, in whole windows.
    """

    def __init__(self, train: Sequences, **settings: Any) -> None:
        """Find the windows; settings and errors as for `TrainingBatches`."""
        super().__init__(train, **settings)
        num_inputs_U = np.maximum(np.diff(self._offsets_U1) - 1, 0)
        num_windows_U = -(-num_inputs_U // self._max_history_length)
        self._first_window_U1 = np.concatenate([[0], num_windows_U.cumsum()])
        # The last event of a user is never an input.
        self._num_inputs_U = num_inputs_U
        self._windows_per_batch = max(1, round(self._batch_size * self._num_windows / self._num_targets))

    @property
    def _num_windows(self) -> int:
        return int(self._first_window_U1[-1])

    @property
    def num_steps(self) -> int:
        """Batches of one epoch."""
        return -(-self._num_windows // self._windows_per_batch)

    def epoch(self, seed: Sequence[int], *, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, as `TrainingBatches.epoch`."""
        generator = np.random.default_rng(seed)
        order = generator.permutation(self._num_windows)
        num_windows_U = np.diff(self._first_window_U1)
        # The first window of a user is shorter by the shift, unless it is the only one.
        slack_U = num_windows_U * self._max_history_length - self._num_inputs_U
        shift_U = np.where(num_windows_U > 1, generator.integers(0, slack_U + 1), 0)
        for step in range(first_step, self.num_steps):
            windows_B = order[step * self._windows_per_batch : (step + 1) * self._windows_per_batch]
            users_B = np.searchsorted(self._first_window_U1, windows_B, side="right") - 1
            ends_B = (windows_B - self._first_window_U1[users_B] + 1) * self._max_history_length
            ends_B = ends_B - shift_U[users_B]
            starts_B = np.maximum(ends_B - self._max_history_length, 0)
            ends_B = np.minimum(ends_B, self._num_inputs_U[users_B])
            first_B = self._offsets_U1[users_B]
            yield self._gather_windows(
                first_B + starts_B,
                first_B + ends_B,
                self._offsets_U1[users_B + 1],
                np.random.default_rng([*seed, step + 1]),
            )

    def _gather_windows(
        self,
        starts_B: NDArray[np.int64],
        ends_B: NDArray[np.int64],
        user_ends_B: NDArray[np.int64],
        generator: np.random.Generator,
    ) -> Batch:
        lengths_B = ends_B - starts_B
        back_L = np.arange(1, lengths_B.max() + 1)
        valid_BL = back_L[None, :] <= lengths_B[:, None]
        events_BL = ends_B[:, None] - np.where(valid_BL, back_L, 1)
        if self._history_dropout:
            valid_BL = _drop(valid_BL, lengths_B, self._history_dropout, generator)
            front_BL = np.argsort(~valid_BL, axis=1, kind="stable")
            events_BL = np.take_along_axis(events_BL, front_BL, axis=1)
            lengths_B = valid_BL.sum(axis=1)
        by_length = np.argsort(-lengths_B, kind="stable")
        lengths_B, events_BL = lengths_B[by_length], events_BL[by_length, : lengths_B.max()]
        valid_BL = back_L[None, : events_BL.shape[1]] <= lengths_B[:, None]
        targets_BL = events_BL + 1
        if self._next_n > 1:
            num_possible_BL = np.minimum(self._next_n, user_ends_B[by_length][:, None] - targets_BL)
            targets_BL = targets_BL + generator.integers(0, num_possible_BL)
        return Batch(
            rows_BL=torch.from_numpy(np.where(valid_BL, self._items_E[events_BL], 0).astype(np.int64)),
            lengths_B=torch.from_numpy(lengths_B),
            targets_B=torch.from_numpy(self._items_E[targets_BL[valid_BL]].astype(np.int64)),
            is_every_position=True,
        )


def _drop(
    valid_BL: NDArray[np.bool_], lengths_B: NDArray[np.int64], share: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Drop events at random, but keep a random one of a history that would lose all."""
    kept_BL = valid_BL & (generator.random(valid_BL.shape, dtype=np.float32) >= share)
    emptied = np.flatnonzero(~kept_BL.any(axis=1))
    kept_BL[emptied, generator.integers(0, lengths_B[emptied])] = True
    return kept_BL
