import zlib
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from re4.common.errors import DataError
from re4.training.data.dataset import Sequences
from re4.training.data.events import Events
from re4.training.data.split import split_by_time, split_by_user, user_parts

User = list[tuple[int, int]]  # (time, item), rising in time


def events_of(users: list[User]) -> Events:
    return Events(
        users_E=np.array([code for code, user in enumerate(users) for _ in user], dtype=np.uint32),
        items_E=np.array([item for user in users for _, item in user], dtype=np.uint32),
        times_E=np.array([time for user in users for time, _ in user], dtype=np.int64),
        user_ids=pl.Series("id", range(len(users))),
        item_ids=pl.Series("id", range(100)),
    )


def lists(sequences: Sequences) -> list[tuple[list[int], int]]:
    offsets = sequences.offsets_U1
    return [
        (sequences.items_E[offsets[user] : offsets[user + 1]].tolist(), int(number))
        for user, number in enumerate(sequences.num_history_U)
    ]


def random_users(num_users: int, seed: int = 0, least: int = 5) -> list[User]:
    rng = np.random.default_rng(seed)
    return [
        sorted((int(time), int(item)) for time, item in rng.integers(0, 100, (int(number), 2)))
        for number in rng.integers(least, 20, num_users)
    ]


user = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99)), min_size=1, max_size=8).map(sorted)
many_users = st.lists(user, min_size=1, max_size=20)


@given(users=many_users, seed=st.integers(0, 5))
def test_by_user_every_user_is_in_one_split_with_all_events(users: list[User], seed: int) -> None:
    try:
        split = split_by_user(events_of(users), seed)
    except DataError:
        parts = user_parts(pl.Series(range(len(users))), seed).tolist()
        of_part = {min(part, 2): [] for part in (0, 1, 2)}
        for part, events in zip(parts, users, strict=True):
            of_part[min(part, 2)].append(len(events))
        assert not of_part[2] or max(of_part[0], default=1) == 1 or max(of_part[1], default=1) == 1
        return
    codes = [code for name in ("train", "valid", "test") for code in split.users[name].tolist()]
    assert len(codes) == len(set(codes)) == len(users) - split.dropped["held_out_users_with_one_event"]
    for name in ("train", "valid", "test"):
        for code, (items, num_history) in zip(split.users[name], lists(split.sequences[name]), strict=True):
            assert items == [item for _, item in users[code]]
            assert num_history == (len(items) if name == "train" else int(len(items) * 4 // 5))


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1, 2**70])
@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_by_user_about_a_tenth_each_is_held_out(seed: int, kind: type[pl.DataType]) -> None:
    counts = np.bincount(user_parts(pl.Series(range(100_000)).cast(kind), seed), minlength=10)
    assert len(counts) == 10
    assert (np.abs(counts - 10_000) < 500).all(), "five standard deviations"


def test_by_user_the_hash_is_the_documented_one() -> None:
    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    ids = ["", "a", "00123", "Zoë", "用户", *(str(number) for number in range(-50, 50))]
    for seed in (0, 7):
        expected = [mix(zlib.crc32(text.encode()) ^ mix(seed)) % 10 for text in ids]
        assert user_parts(pl.Series(ids), seed).tolist() == expected
    assert mix(0) == 0xE220A8397B1DCDAF, "the first output of SplitMix64 for the state 0"


log = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30, unique=True)


@given(today=log, added=log, seed=st.integers(0, 5), data=st.data())
def test_by_user_a_part_depends_on_nothing_but_id_and_seed(
    today: list[int], added: list[int], seed: int, data: st.DataObject
) -> None:
    parts = dict(zip(today, user_parts(pl.Series(today, dtype=pl.Int64), seed).tolist(), strict=True))
    tomorrow = data.draw(st.permutations(sorted({*today, *added})))
    later = user_parts(pl.Series(tomorrow, dtype=pl.Int64), seed).tolist()
    as_text = user_parts(pl.Series([str(user) for user in tomorrow]), seed).tolist()
    assert later == as_text
    assert parts.items() <= dict(zip(tomorrow, later, strict=True)).items()


@given(seed=st.integers(0, 20))
def test_by_user_no_held_out_user_of_tomorrow_is_trained_on_today(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users = random_users(300, seed=seed)
    names = pl.Series(rng.permutation(10_000)[:300]).cast(pl.String)

    def ids(part: slice, order: np.ndarray) -> dict[str, set[str]]:
        chosen = order[part]
        events = events_of([users[code] for code in chosen])
        split = split_by_user(replace(events, user_ids=names.gather(chosen)), 3)
        return {name: set(names.gather(chosen[codes])) for name, codes in split.users.items()}

    order = rng.permutation(300)
    today, tomorrow = ids(slice(0, 200), order), ids(slice(None), rng.permutation(300))
    assert not today["train"] & (tomorrow["valid"] | tomorrow["test"])
    assert not tomorrow["train"] & (today["valid"] | today["test"])
    for name in today:
        assert today[name] <= tomorrow[name]


def test_by_user_the_seed_decides() -> None:
    events = events_of(random_users(200))
    first, same, other = (split_by_user(events, seed).users["test"].tolist() for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_by_user_the_history_is_the_first_four_fifths_rounded_down() -> None:
    users = [[(time, time) for time in range(number)] for number in range(2, 60)]
    split = split_by_user(events_of(users), 0)
    for name in ("valid", "test"):
        for items, num_history in lists(split.sequences[name]):
            assert num_history == int(np.floor(0.8 * len(items) + 1e-9))
            assert 1 <= num_history < len(items)


def test_by_user_two_users_are_too_few() -> None:
    with pytest.raises(DataError, match=r"test would have no users out of 2.*another --seed"):
        split_by_user(events_of(random_users(2)), 0)


@given(users=many_users)
def test_by_time_against_a_plain_python_split(users: list[User]) -> None:
    times = sorted(time for user in users for time, _ in user)
    first, second = times[len(times) * 8 // 10], times[len(times) * 9 // 10]
    expected: dict[str, list[tuple[int, list[int], int]]] = {"train": [], "valid": [], "test": []}
    no_history = {"valid": 0, "test": 0}
    for code, events in enumerate(users):
        early = [item for time, item in events if time < first]
        middle = [item for time, item in events if first <= time < second]
        late = [item for time, item in events if time >= second]
        if early:
            expected["train"].append((code, early, len(early)))
        if middle and early:
            expected["valid"].append((code, early + middle, len(early)))
        if late and early + middle:
            expected["test"].append((code, early + middle + late, len(early + middle)))
        no_history["valid"] += bool(middle and not early)
        no_history["test"] += bool(late and not early + middle)
    if not all(expected.values()):
        with pytest.raises(DataError, match="would have no users"):
            split_by_time(events_of(users))
        return
    split = split_by_time(events_of(users))
    assert split.cuts == (first, second)
    for name, rows in expected.items():
        got = [
            (code, items, number)
            for code, (items, number) in zip(
                split.users[name].tolist(), lists(split.sequences[name]), strict=True
            )
        ]
        assert got == rows
    assert split.dropped == {f"{name}_users_without_history": number for name, number in no_history.items()}


@given(seed=st.integers(0, 20))
def test_by_time_shares_are_about_eighty_ten_ten_of_the_events(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_events = 1000
    owners = np.sort(rng.integers(0, 50, num_events))
    assume(len(np.unique(owners)) == 50)
    times = rng.permutation(num_events)
    users = [sorted((int(time), 0) for time in times[owners == code]) for code in range(50)]
    split = split_by_time(events_of(users))
    assert split.sequences["train"].num_events == 800
    assert split.cuts == (800, 900)


def test_by_time_works_on_fractional_times() -> None:
    events = events_of(random_users(40))
    halved = Events(
        users_E=events.users_E,
        items_E=events.items_E,
        times_E=events.times_E / 1000.0,
        user_ids=events.user_ids,
        item_ids=events.item_ids,
    )
    whole, fractional = split_by_time(events), split_by_time(halved)
    for name in ("train", "valid", "test"):
        assert lists(whole.sequences[name]) == lists(fractional.sequences[name])


@given(seed=st.integers(0, 50))
def test_by_time_nothing_trained_on_today_is_a_target_tomorrow(seed: int) -> None:
    """The log grows at its end; the cuts are the default ones."""
    rng = np.random.default_rng(seed)
    users = random_users(40, seed=seed)
    today = [[event for event in user if event[0] < 60] for user in users]
    older = [user for user in today if user] + [[(0, 0), (1, 1)]]
    newer = [*older, *([(60 + int(step), 5) for step in sorted(rng.integers(0, 40, 5))] for _ in range(20))]
    newer = [
        user + [event for event in users[code % 40] if event[0] >= 60] for code, user in enumerate(newer)
    ]
    first, later = split_by_time(events_of(older)), split_by_time(events_of([sorted(u) for u in newer]))
    assert first.cuts is not None
    assert later.cuts is not None
    assert later.cuts[0] >= first.cuts[0], "targets lie at or after the cut, what is trained on before it"


def test_by_time_given_cuts_hold_whatever_the_log() -> None:
    users = random_users(60)
    for part in (users, users[:50], [user[2:] for user in users]):
        split = split_by_time(events_of(part), (70, 90))
        assert split.cuts == (70, 90)
        for name, start, end in (("valid", 70, 90), ("test", 90, 1000)):
            for code, (items, number) in zip(
                split.users[name].tolist(), lists(split.sequences[name]), strict=True
            ):
                assert items[number:] == [item for time, item in part[code] if start <= time < end]


def test_by_time_one_moment_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="spread over time"):
        split_by_time(events_of([[(5, 1), (5, 2), (5, 3)] for _ in range(20)]))
