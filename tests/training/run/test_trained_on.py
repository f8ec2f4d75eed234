"""Held-out users that no earlier training has seen: by the rule, else by ids, else unknown."""

import json
import shutil
from dataclasses import asdict
from datetime import datetime
from functools import cache

import numpy as np
import polars as pl
import pytest
from daily_logs import log, prepare, prepare_as_earlier_versions
from hypothesis import given, settings
from hypothesis import strategies as st

from re4.training.run.trained_on import TrainedOn, unseen_users


def texts(ids):
    return set(ids.cast(pl.String))


def assert_nothing_leaks(found, earlier_train, today, split):
    """The kept users are exactly those that the earlier training has not seen."""
    ids = today.users(split)
    assert texts(ids.filter(pl.Series(found.is_unseen_U))) == texts(ids) - texts(earlier_train)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("gone", [False, True])
def test_by_the_same_hash_and_seed_nobody_was_seen(tmp_path, split, gone):
    yesterday, today = prepare(log(1), tmp_path / "1"), prepare(log(2, seed=1), tmp_path / "2")
    trained_on, train = TrainedOn.of(yesterday), yesterday.users("train")
    if gone:
        shutil.rmtree(yesterday.path)
    found = unseen_users([trained_on], today, split)
    assert found.num_seen == 0
    assert not found.unknown
    assert_nothing_leaks(found, train, today, split)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("as_text", [False, True])
def test_by_another_seed_the_ids_decide(tmp_path, split, as_text):
    yesterday = prepare(log(1), tmp_path / "1", seed=1)
    today = prepare(
        log(2, as_text=as_text).cast({"user": pl.String if as_text else pl.Int64}), tmp_path / "2"
    )
    found = unseen_users([TrainedOn.of(yesterday)], today, split)
    assert 0 < found.num_seen < today.split(split).num_users
    assert not found.unknown
    assert_nothing_leaks(found, yesterday.users("train"), today, split)


def test_data_sets_of_earlier_versions_are_compared_by_ids(tmp_path, monkeypatch):
    yesterday = prepare_as_earlier_versions(log(1), tmp_path / "1", monkeypatch)
    for name, today in (
        ("old", prepare_as_earlier_versions(log(2), tmp_path / "2", monkeypatch)),
        ("new", prepare(log(2), tmp_path / "3")),
    ):
        found = unseen_users([TrainedOn.of(yesterday)], today, "test")
        assert found.num_seen, name
        assert_nothing_leaks(found, yesterday.users("train"), today, "test")


def test_on_the_same_data_set_nobody_was_seen_wherever_it_lies(tmp_path, monkeypatch):
    dataset = prepare_as_earlier_versions(log(1), tmp_path / "1", monkeypatch)
    trained_on = TrainedOn.of(dataset)
    shutil.move(dataset.path, tmp_path / "moved")
    found = unseen_users([trained_on], type(dataset).open(tmp_path / "moved"), "test")
    assert (found.num_seen, found.unknown) == (0, [])


@pytest.mark.parametrize("change", ["gone", "overwritten"])
def test_where_ids_are_needed_and_gone_it_is_unknown(tmp_path, change):
    yesterday, today = prepare(log(1), tmp_path / "1", seed=1), prepare(log(2), tmp_path / "2")
    trained_on = TrainedOn.of(yesterday)
    shutil.rmtree(yesterday.path)
    if change == "overwritten":
        prepare(log(1, seed=5), tmp_path / "1", seed=2)
    found = unseen_users([trained_on, TrainedOn()], today, "test")
    assert found.num_seen == 0
    assert found.unknown == [str(tmp_path / "1"), "a data set that is not recorded"]


def test_the_unseen_are_unseen_by_every_earlier_training(tmp_path):
    days = [prepare(log(day + 1), tmp_path / f"{day}", seed=day) for day in range(3)]
    found = unseen_users([TrainedOn.of(day) for day in days[:2]], days[2], "test")
    assert_nothing_leaks(found, pl.concat([day.users("train") for day in days[:2]]), days[2], "test")


def test_splits_by_time_whose_cuts_rise_leave_nobody_out(tmp_path):
    yesterday = prepare(log(2), tmp_path / "1", split="time")
    today = prepare(log(3), tmp_path / "2", split="time")
    assert unseen_users([TrainedOn.of(yesterday)], today, "valid").num_seen == 0
    backwards = unseen_users([TrainedOn.of(today)], yesterday, "test")
    assert_nothing_leaks(backwards, today.users("train"), yesterday, "test")
    assert backwards.num_seen, "today's training saw events after yesterday's cuts"


def test_a_cut_between_the_other_twos_cuts_spoils_validation_alone(tmp_path):
    cuts = [f"2023-11-{day}" for day in (15, 16)]
    earlier = prepare(log(3), tmp_path / "1", split="time", cuts=("2023-11-15T12:00:00", cuts[1]))
    today = prepare(log(3, seed=2), tmp_path / "2", split="time", cuts=(cuts[0], cuts[1]))
    assert unseen_users([TrainedOn.of(earlier)], today, "valid").num_seen
    assert unseen_users([TrainedOn.of(earlier)], today, "test").num_seen == 0


def test_a_split_by_time_after_one_by_user_is_compared_by_ids(tmp_path):
    yesterday, today = prepare(log(2), tmp_path / "1"), prepare(log(2), tmp_path / "2", split="time")
    for earlier, later in ((yesterday, today), (today, yesterday)):
        found = unseen_users([TrainedOn.of(earlier)], later, "test")
        assert found.num_seen
        assert_nothing_leaks(found, earlier.users("train"), later, "test")


def test_a_record_survives_json(tmp_path):
    trained_on = TrainedOn.of(prepare(log(1), tmp_path / "1"))
    assert TrainedOn(**json.loads(json.dumps(asdict(trained_on)))) == trained_on
    assert trained_on.split == {"split": "user", "split_rule": "hash of the user id", "seed": 0}


def test_only_some_users_keep_their_events(tmp_path):
    test = prepare(log(1, users_per_day=200), tmp_path / "1").test
    chosen_U = np.arange(test.num_users) % 2 == 0
    part = test.only(chosen_U)
    assert part.num_users == chosen_U.sum()
    for place, user in enumerate(np.flatnonzero(chosen_U)):
        theirs = test.items_E[test.offsets_U1[user] : test.offsets_U1[user + 1]]
        np.testing.assert_array_equal(
            part.items_E[part.offsets_U1[place] : part.offsets_U1[place + 1]], theirs
        )
    np.testing.assert_array_equal(part.num_history_U, test.num_history_U[chosen_U])


RULES = {
    "user 0": {"seed": 0},
    "user 1": {"seed": 1},
    "time": {"split": "time"},
    "early cuts": {"split": "time", "cuts": ("2023-11-15", "2023-11-16")},
    "earlier version": None,
}


@pytest.fixture(scope="module")
def day_of(tmp_path_factory):
    """Prepare the log of a day by a rule, once."""

    @cache
    def prepared(day, name):
        out = tmp_path_factory.mktemp("days") / "data"
        frame = log(2 + day, users_per_day=20)
        if RULES[name] is not None:
            return prepare(frame, out, **RULES[name])
        with pytest.MonkeyPatch.context() as patch:
            return prepare_as_earlier_versions(frame, out, patch, seed=day)

    return prepared


chains = st.lists(st.sampled_from(sorted(RULES)), min_size=2, max_size=4)


@settings(max_examples=20)
@given(chain=chains, split=st.sampled_from(["valid", "test"]))
def test_whatever_the_chain_the_judged_were_trained_on_nowhere_in_it(day_of, chain, split):
    """By user: no judged user was in any training of the chain. By time: no target of a judged user was."""
    *earlier, today = (day_of(day, name) for day, name in enumerate(chain))
    found = unseen_users([TrainedOn.of(day) for day in earlier], today, split)
    assert not found.unknown
    judged = texts(today.users(split).filter(pl.Series(found.is_unseen_U)))
    first_target = cut_of(today, 0 if split == "valid" else 1)
    for day in earlier:
        trained_until = cut_of(day, 0)
        if first_target is None or trained_until is None or trained_until > first_target:
            assert not judged & texts(day.users("train"))


def cut_of(dataset, place):
    """The time of a cut; None for a split by user."""
    cuts = dataset.info.prepared.get("cuts")
    return cuts and datetime.fromisoformat(cuts[place])
