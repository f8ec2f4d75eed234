"""Training examples: every event after a user's first, with exactly the events before it."""

import numpy as np
import pytest
import torch
from user_sequences import sequences

from re4.common.errors import DataError
from re4.training.data.batches import TrainingBatches, WindowBatches

USERS = [[1, 2, 3, 4, 5, 6], [7], [8, 9], [3, 3, 3]]
# The epoch of seed [5, 1] with histories of 3 and dropout .5, as versions without next_n gave it.
EARLIER_ROWS = [[5, 4], [3, 3], [3, 0], [8, 0], [1, 0], [3, 0], [4, 0], [2, 0]]
EARLIER_TARGETS = [6, 3, 4, 9, 2, 3, 5, 3]


def examples(batches, seed=0):
    found = []
    for batch in batches.epoch([seed]):
        assert batch.rows_BL.dtype == batch.lengths_B.dtype == batch.targets_B.dtype == torch.int64
        for rows, length, target in zip(batch.rows_BL, batch.lengths_B, batch.targets_B, strict=True):
            assert (rows[length:] == 0).all(), "padding is row 0"
            found.append((tuple(rows[:length].tolist()), int(target)))
    return found


def test_one_epoch_has_every_event_after_the_first_with_the_newest_events_before_it():
    batches = TrainingBatches(sequences(*USERS), max_history_length=3, batch_size=4)
    expected = [
        (tuple(reversed(user[max(0, place - 3) : place])), user[place])
        for user in USERS
        for place in range(1, len(user))
    ]
    assert sorted(examples(batches)) == sorted(expected)
    assert batches.num_examples == len(expected)


def test_the_order_comes_from_the_generator_alone():
    batches = TrainingBatches(sequences(*USERS), max_history_length=3, batch_size=2, history_dropout=0.5)
    assert examples(batches, seed=1) == examples(batches, seed=1)
    assert examples(batches, seed=1) != examples(batches, seed=2)


def test_dropout_leaves_events_out_in_order_and_never_all():
    user = list(range(1, 30))
    batches = TrainingBatches(sequences(user), max_history_length=10, batch_size=64, history_dropout=0.7)
    sizes = []
    for seed in range(20):
        for history, target in examples(batches, seed):
            possible = list(reversed(user[max(0, target - 11) : target - 1]))
            places = [possible.index(item) for item in history]
            assert places == sorted(set(places))
            assert len(history) >= 1
            sizes.append(len(history) / len(possible))
    assert 0.3 < np.mean(sizes) < 0.45  # 0.3 is left on average, more where at least one must stay


def test_nothing_to_learn_from():
    with pytest.raises(DataError, match="two events"):
        TrainingBatches(sequences([1], [2]), max_history_length=3, batch_size=2)


def test_users_without_events_are_passed_over():
    batches = TrainingBatches(sequences([], [1, 2], []), max_history_length=3, batch_size=2)
    assert examples(batches) == [((1,), 2)]


def test_an_epoch_can_be_entered_in_the_middle():
    batches = TrainingBatches(sequences(*USERS), max_history_length=3, batch_size=2, history_dropout=0.5)
    whole = [(batch.rows_BL, batch.targets_B) for batch in batches.epoch([4, 1])]
    assert len(whole) == batches.num_steps
    for step in range(batches.num_steps):
        later = [(batch.rows_BL, batch.targets_B) for batch in batches.epoch([4, 1], first_step=step)]
        for one, other in zip(later, whole[step:], strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("options", [{}, {"next_n": 1}])
def test_the_very_next_event_is_the_target_by_default(options):
    """The stream of earlier versions, bit for bit."""
    batches = TrainingBatches(
        sequences(*USERS), max_history_length=3, batch_size=64, history_dropout=0.5, **options
    )
    (whole,) = batches.epoch([5, 1])
    assert whole.rows_BL.tolist() == EARLIER_ROWS
    assert whole.targets_B.tolist() == EARLIER_TARGETS


def test_histories_and_their_order_do_not_depend_on_next_n():
    few, many = (
        TrainingBatches(
            sequences(*USERS), max_history_length=3, batch_size=3, history_dropout=0.5, next_n=next_n
        )
        for next_n in (1, 4)
    )
    for one, other in zip(few.epoch([5, 1]), many.epoch([5, 1]), strict=True):
        assert torch.equal(one.rows_BL, other.rows_BL)
        assert torch.equal(one.lengths_B, other.lengths_B)


def test_next_n_draws_evenly_from_the_next_n_events_of_the_same_user():
    user, other = list(range(1, 12)), [100, 101, 102]
    batches = TrainingBatches(sequences(user, other), max_history_length=3, batch_size=64, next_n=4)
    drawn: dict[int, list[int]] = {}
    for seed in range(300):
        for history, target in examples(batches, seed):
            drawn.setdefault(history[0], []).append(target)
    for newest, targets in drawn.items():
        events = user if newest in user else other
        later = events[events.index(newest) + 1 :][:4]
        counts = [targets.count(item) for item in later]
        assert sum(counts) == len(targets) == 300, (
            "no event before, of another user, or later than the next 4"
        )
        expected = 300 / len(later)
        assert max(abs(count - expected) for count in counts) < 5 * expected**0.5


def test_targets_drawn_from_the_next_n_resume_at_any_step():
    batches = TrainingBatches(sequences(*USERS), max_history_length=3, batch_size=2, next_n=3)
    whole = [batch.targets_B for batch in batches.epoch([4, 1])]
    for step in range(batches.num_steps):
        later = [batch.targets_B for batch in batches.epoch([4, 1], first_step=step)]
        assert all(torch.equal(*pair) for pair in zip(later, whole[step:], strict=True))


@pytest.mark.parametrize("kind", [TrainingBatches, WindowBatches])
@pytest.mark.parametrize("num_parts", [1, 3, 20])
def test_parts_of_a_batch_have_its_examples_each_once_and_the_longest_first(kind, num_parts):
    batches = kind(sequences(*USERS), max_history_length=3, batch_size=64)
    batch = next(batches.epoch([0]))
    parts = [batch.part(number, num_parts) for number in range(num_parts)]

    def pairs(of):
        found, targets = [], of.targets_B.tolist()
        for rows, length in zip(of.rows_BL.tolist(), of.lengths_B.tolist(), strict=True):
            number = length if of.is_every_position else 1
            found.append((rows[:length], targets[:number]))
            del targets[:number]
        assert not targets
        return found

    assert sorted(pair for part in parts for pair in pairs(part)) == sorted(pairs(batch))
    for part in parts:
        assert part.lengths_B.tolist() == sorted(part.lengths_B.tolist(), reverse=True)
        assert part.rows_BL.shape[1] == (part.lengths_B.max() if len(part.lengths_B) else 0)
