"""Live items on disk: appended whole or not at all, followed, compacted, and refused where damaged."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundles import SmallVersion

from re4.bundle.layout import LIVE, LIVE_FOLDER
from re4.bundle.live_items import writer
from re4.bundle.live_items.compaction import compact, repair
from re4.bundle.live_items.reader import LiveItemsReader
from re4.bundle.live_items.records import (
    Change,
    Evidence,
    Record,
    Removal,
    Upsert,
    checked_upsert,
    decode_records,
    encode_record,
)
from re4.bundle.live_items.state import LiveState, as_kind, read_live_state
from re4.bundle.live_items.writer import append_changes
from re4.bundle.publishing.directory_lock import live_compaction_lock, live_items_lock
from re4.common.errors import BundleBusyError, BundleDamagedError, BundleError, RequestError

SPACE = "a" * 64


def vector(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(4).astype(np.float32)


def facts(record: Record) -> tuple[Any, ...]:
    change = record.change
    match change:
        case Upsert():
            of_vector = None if change.vector_D is None else change.vector_D.tolist()
            return record.sequence, "upsert", change.id, dict(change.attributes), of_vector, change.space
        case Removal():
            return record.sequence, "removal", change.id
        case Evidence():
            return record.sequence, "evidence", change.id, change.weight, change.sum_D.tolist()


CHANGES: list[Change] = [
    Upsert("é-1", {"genres": ("Drama", "Comedy"), "year": ("1996",)}),
    Upsert("2", {}, vector(0), SPACE),
    Removal("é-1"),
    Evidence("2", SPACE, 0.5, vector(1)),
]


def test_records_come_back_as_they_were_written() -> None:
    records = [Record(number, 10 + number, change) for number, change in enumerate(CHANGES, 1)]
    content = b"".join(map(encode_record, records))
    places, found = zip(*decode_records(content, where="here"), strict=True)
    assert [facts(each) for each in found] == [facts(each) for each in records]
    assert places[-1] == len(content)
    assert [record.time_ms for record in found] == [11, 12, 13, 14]


def test_without_the_list_there_are_no_live_items(tmp_path: Path) -> None:
    assert LiveItemsReader(tmp_path).read().records == []
    assert read_live_state(tmp_path) == LiveState()


def test_followed_each_change_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_SEGMENT_BYTES", 300)
    follower = LiveItemsReader(tmp_path)
    assert append_changes(tmp_path, CHANGES[:2]) == 2
    assert [record.sequence for record in follower.read().records] == [1, 2]
    assert follower.read().records == []
    assert append_changes(tmp_path, []) == 2
    for _ in range(5):
        append_changes(tmp_path, CHANGES)
    new = follower.read()
    assert [record.sequence for record in new.records] == list(range(3, 23))
    assert not new.is_reset
    assert len(list((tmp_path / LIVE_FOLDER).iterdir())) > 2, "segments are bounded"
    assert [record.sequence for record in LiveItemsReader(tmp_path).read().records] == list(range(1, 23))


@settings(max_examples=20)
@given(
    st.lists(
        st.one_of(
            st.builds(Upsert, st.sampled_from("abcde"), st.just({"x": ("1",)})),
            st.builds(Removal, st.sampled_from("abcde")),
            st.builds(
                lambda id_, seed: Evidence(id_, SPACE, 1.0, vector(seed), num_events=seed),
                st.sampled_from("abc"),
                st.integers(0, 9),
            ),
            st.just("compact"),
            st.just("read"),
            st.just("late reader"),
        ),
        max_size=30,
    )
)
def test_readers_come_to_the_state_of_all_changes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    bundles = tmp_path_factory.mktemp("bundles")
    SmallVersion().publish(bundles)
    expected = LiveState()
    followers = [(LiveItemsReader(bundles), LiveState())]

    def read(follower: LiveItemsReader, state: LiveState) -> None:
        new = follower.read()
        if new.is_reset:
            state.items.clear()
            state.evidence.clear()
            state.num_events = 0
        state.apply(new.records)
        assert new.sequence == expected.sequence

    for step in steps:
        if step == "compact":
            compact(bundles)
        elif step == "read":
            read(*followers[0])
        elif step == "late reader":
            followers.append((LiveItemsReader(bundles), LiveState()))
        else:
            sequence = append_changes(bundles, [step])
            expected.apply([Record(sequence, 0, step)])
    for follower, state in followers:
        read(follower, state)
        assert {id_: each.sequence for id_, each in state.items.items()} == {
            id_: each.sequence for id_, each in expected.items.items()
        }
        assert state.evidence.keys() == expected.evidence.keys()
        for key, each in state.evidence.items():
            assert each.weight == expected.evidence[key].weight
            assert each.num_others == expected.evidence[key].num_others
            np.testing.assert_allclose(each.sum_D, expected.evidence[key].sum_D, rtol=1e-5, atol=1e-6)


def test_a_compaction_keeps_what_versions_need(tmp_path: Path) -> None:
    SmallVersion().publish(tmp_path)
    append_changes(tmp_path, [Upsert("a"), Upsert("b"), Evidence("a", "b" * 64, 1.0, vector(0))])
    compact(tmp_path, adopted={"a": 1, "b": 2})
    assert set(read_live_state(tmp_path).items) == {"a", "b"}, "the version has not taken them in"
    assert not read_live_state(tmp_path).evidence, "no version is of that space"


@pytest.mark.parametrize("where", ["start", "middle", "end", "list"])
def test_a_flipped_bit_is_found(tmp_path: Path, where: str) -> None:
    append_changes(tmp_path, CHANGES)
    (segment,) = (tmp_path / LIVE_FOLDER).iterdir()
    file = tmp_path / LIVE if where == "list" else segment
    content = bytearray(file.read_bytes())
    rng = np.random.default_rng(3)
    first, last = {"start": (0, 8), "middle": (8, 120), "end": (-60, 0), "list": (0, 0)}[where]
    for place in range(len(content))[first : last or None]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(BundleError):
            LiveItemsReader(tmp_path).read()
    file.write_bytes(content)
    assert len(LiveItemsReader(tmp_path).read().records) == 4


def test_a_shortened_file_is_found_and_repaired(tmp_path: Path) -> None:
    append_changes(tmp_path, CHANGES[:2])
    (segment,) = (tmp_path / LIVE_FOLDER).iterdir()
    content = segment.read_bytes()
    for size in range(len(content)):
        segment.write_bytes(content[:size])
        with pytest.raises(BundleDamagedError):
            LiveItemsReader(tmp_path).read()
    with pytest.raises(BundleDamagedError, match=r"re4 items repair"):
        append_changes(tmp_path, CHANGES)
    (damage,) = repair(tmp_path).damages
    assert "cut off" in damage
    assert list(read_live_state(tmp_path).items) == ["é-1"]
    assert append_changes(tmp_path, [Removal("x")]) == 2


def test_a_missing_list_is_no_empty_list(tmp_path: Path) -> None:
    append_changes(tmp_path, CHANGES)
    (tmp_path / LIVE).unlink()
    with pytest.raises(BundleDamagedError, match="missing, but live/ has segments"):
        LiveItemsReader(tmp_path).read()
    with pytest.raises(BundleDamagedError, match="missing"):
        append_changes(tmp_path, CHANGES)
    assert repair(tmp_path) == (2, [])
    assert read_live_state(tmp_path).sequence == 4
    follower = LiveItemsReader(tmp_path)
    assert len(follower.read().records) == 3, "the state, without the superseded change"
    append_changes(tmp_path, CHANGES[:1])
    assert [record.sequence for record in follower.read().records] == [5]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "replace"])
def test_a_full_or_read_only_disk_refuses_and_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    append_changes(tmp_path, CHANGES)

    def fail(*arguments: Any) -> Any:
        if call == "pwrite":
            os.write(arguments[0], b"")
            raise OSError(code, os.strerror(code))
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path if call == "replace" else os, call, fail)
        with pytest.raises(BundleError, match="none of them counts"):
            append_changes(tmp_path, CHANGES)
    assert read_live_state(tmp_path).sequence == 4
    assert append_changes(tmp_path, CHANGES) == 8
    assert [record.sequence for record in LiveItemsReader(tmp_path).read().records] == list(range(1, 9))


def test_the_clock_does_not_order_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for now_s in (1e9, 1e9 + 86_400, 1e9 - 86_400):
        monkeypatch.setattr(writer, "time", lambda now_s=now_s: now_s)
        append_changes(tmp_path, [Upsert("a", {"at": (f"{now_s:.0f}",)})])
    (last,) = read_live_state(tmp_path).upserts()
    assert last.attributes == {"at": ("999913600",)}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with live_items_lock(tmp_path), pytest.raises(BundleBusyError, match="a write of live items"):
        append_changes(tmp_path, CHANGES, patience_s=0.0)
    with live_compaction_lock(tmp_path), pytest.raises(BundleBusyError, match="a compaction"):
        compact(tmp_path)
    assert not list(tmp_path.glob(".live*"))


def test_what_a_dead_writer_left_is_cut_off(tmp_path: Path) -> None:
    append_changes(tmp_path, CHANGES)
    (segment,) = (tmp_path / LIVE_FOLDER).iterdir()
    with segment.open("ab") as file:
        file.write(encode_record(Record(5, 0, Upsert("never acknowledged")))[:-3])
    assert len(LiveItemsReader(tmp_path).read().records) == 4
    append_changes(tmp_path, [Upsert("b")])
    assert "never acknowledged" not in read_live_state(tmp_path).items
    assert read_live_state(tmp_path).sequence == 5


def test_too_many_changes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_BYTES", 100)
    with pytest.raises(BundleError, match="let a rebuild take the live items in"):
        append_changes(tmp_path, CHANGES)


def test_upserts_are_checked() -> None:
    def upsert(id_: Any = "a", attributes: Any = None, vector: Any = None, kind: Any = "string") -> Upsert:
        return checked_upsert(id_, attributes or {}, vector, kind=kind, space=SPACE, embedding_dim=2)

    found = upsert(
        attributes={"year": 1996, "is_new": True, "genres": ["Drama", "Drama", "", None], "none": None}
    )
    assert found.attributes == {"year": ("1996",), "is_new": ("true",), "genres": ("Drama",)}
    assert found.vector_D is None
    assert upsert(vector=[1, 2.5]).space == SPACE
    for wrong, words in [
        ({"id_": 1}, "strings"),
        ({"id_": ""}, "0 bytes"),
        ({"id_": "x" * 2000}, "2000 bytes"),
        ({"id_": "\ud800"}, "lone surrogate"),
        ({"id_": "1", "kind": "int"}, "64-bit integers"),
        ({"id_": 2**63, "kind": "int"}, "64-bit integers"),
        ({"vector": [1]}, "shape"),
        ({"vector": [1, float("nan")]}, "not finite"),
        ({"vector": [1, "x"]}, "numbers"),
        ({"attributes": {"a": 1j}}, "complex"),
        ({"attributes": {"": "x"}}, "characters"),
        ({"attributes": {"a": "x" * 1025}}, "1025 UTF-8 bytes"),
        ({"attributes": {"a": [str(n) for n in range(300)]}}, "300 values"),
        ({"attributes": {str(n): "x" for n in range(65)}}, "65 attributes"),
    ]:
        with pytest.raises(RequestError, match=words):
            upsert(**wrong)


def test_ids_in_the_kind_of_a_catalogue() -> None:
    assert [as_kind("7", "int"), as_kind("07", "int"), as_kind("x", "int"), as_kind(7, "string")] == [
        7,
        None,
        None,
        "7",
    ]
