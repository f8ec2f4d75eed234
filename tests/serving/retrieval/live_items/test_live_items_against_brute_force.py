"""Answers over a version and its live items, compared with scoring every item one by one."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_kind_versions import version_of
from live_catalogue import LiveCatalogue, open_snapshot, records_of, upsert
from small_bundles import EMBEDDING_DIM, SmallVersion

from re4.bundle.hidden_ids import HiddenIds
from re4.bundle.live_items.records import Change, Removal
from re4.protos.v1 import retrieval_pb2
from re4.serving.api import replies
from re4.serving.api.batch_handler import RequestResult, answer_batch
from re4.serving.api.validation import check_retrieve
from re4.serving.retrieval.live_items import overlay, view
from re4.serving.retrieval.search import Searcher
from re4.serving.settings import Fallback, ServerSettings
from re4.serving.versions.snapshot import Snapshot

SETTINGS = ServerSettings()


@cache
def small(id_kind: str, index: str) -> tuple[SmallVersion, Snapshot]:
    bundles = Path(mkdtemp(prefix="re4-live-"))
    version = (
        SmallVersion(id_kind=id_kind, has_attributes=True, num_items=61)
        if index == "flat"
        else version_of(index)
    )
    return version, open_snapshot(bundles, version.publish(bundles))


def ids(kind: str, names: list[Any]) -> retrieval_pb2.ItemIds:
    return retrieval_pb2.ItemIds(**{"strings" if kind == "string" else "ints": names})


def ask(snapshot: Snapshot, kind: str, histories: list[list[Any]], num: int = 20, **fields: Any) -> list[Any]:
    """Return the replies to one batch."""
    requests = [
        check_retrieve(
            retrieval_pb2.RetrieveRequest(history=ids(kind, history), num_candidates=num, **fields),
            snapshot,
            SETTINGS,
        )
        for history in histories
    ]
    found = answer_batch(requests, Fallback.POPULAR)
    messages = []
    for request, result in zip(requests, found, strict=True):
        assert isinstance(result, RequestResult), result
        messages.append(retrieval_pb2.RetrieveReply.FromString(replies.retrieve_reply(result, 0, request)))
    return messages


def listed(kind: str, items: retrieval_pb2.ItemIds) -> list[Any]:
    return list(items.strings if kind == "string" else items.ints)


def check(reply: Any, kind: str, expected: list[tuple[Any, float]]) -> None:
    """Compare a reply with the expected items, modulo ties."""
    found = listed(kind, reply.items)
    assert len(set(found)) == len(found) == len(expected)
    scores = [score for _, score in expected]
    np.testing.assert_allclose(reply.scores, scores, rtol=1e-4, atol=1e-4)
    by_id = dict(expected)
    last = scores[-1] if scores else 0.0
    for id_, score in zip(found, reply.scores, strict=True):
        assert id_ in by_id or score <= last + 1e-3
        if id_ in by_id:
            assert score == pytest.approx(by_id[id_], rel=1e-4, abs=1e-4)


def changes(kind: str) -> st.SearchStrategy[list[Any]]:
    old = st.integers(0, 60).map(lambda n: 1000 + 7 * n if kind == "int" else f"item-{n}-é")
    new = st.integers(0, 15).map(lambda n: n if kind == "int" else f"new {n}")
    id_ = st.one_of(old, new)
    vector = st.one_of(
        st.none(),
        st.integers(0, 99).map(lambda n: 1.5 * np.random.default_rng(n).standard_normal(EMBEDDING_DIM)),
    )
    values = st.fixed_dictionaries(
        {},
        optional={
            "colour": st.sampled_from([("red",), ("blue",), ("mauve",)]),
            "tags": st.sampled_from([("a",), ("b", "zz"), ("a", "e")]),
            "size": st.just(("large",)),
            "price": st.sampled_from([("3.25",), ("3.3",), ("1e3",), ("cheap",)]),
        },
    )
    change = st.one_of(
        st.builds(lambda id_, vector, values: upsert(id_, vector, **values), id_, vector, values),
        st.builds(Removal, id_),
    )
    return st.lists(st.one_of(change, st.just("view")), max_size=30)


@settings(max_examples=25)
@given(st.data(), st.sampled_from(["string", "int"]), st.booleans())
def test_small_catalogues(data: st.DataObject, kind: str, has_hidden: bool) -> None:
    version, loaded = small(kind, "flat")
    catalogue, live = LiveCatalogue(version), loaded.new_overlay()
    hidden = [version.ids[3], version.ids[10], "new 2" if kind == "string" else 2] if has_hidden else []
    catalogue.hidden = set(hidden)
    hidden_ids = HiddenIds(id_kind=kind, ids=tuple(hidden))
    live.hide(hidden_ids)
    number = 0
    for change in data.draw(changes(kind)):
        if change == "view":
            live.view()
            continue
        number += 1
        live.apply(records_of([change], start=number))
        catalogue.apply(change)
    snapshot = loaded.with_hidden(hidden_ids).with_live(live.view())
    new = [id_ for id_ in catalogue.vectors if id_ not in set(version.ids)]
    histories = [version.ids[:4], [*new[:2], version.ids[7]], [version.ids[3], version.ids[20]]]
    for reply, history in zip(ask(snapshot, kind, histories), histories, strict=True):
        check(reply, kind, catalogue.best(history, 20))
        assert reply.num_unknown_history_ids == 0
    everything = ask(snapshot, kind, histories[:1], num=200)[0]
    check(everything, kind, catalogue.best(histories[0], 200))
    for values in (
        {"colour": ["red"]},
        {"tags": ["a", "zz"]},
        {"colour": ["mauve"]},
        {"colour": ["blue"], "tags": ["b", "e"]},
    ):
        filters = [
            retrieval_pb2.AttributeFilter(attribute=name, values=each) for name, each in values.items()
        ]
        keep = {name: set(each) for name, each in values.items()}
        reply = ask(snapshot, kind, histories[:1], filters=filters)[0]
        check(reply, kind, catalogue.best(histories[0], 20, keep=keep))
    cheap = retrieval_pb2.AttributeFilter(
        attribute="price", range=retrieval_pb2.AttributeRange(above="2", at_most="3.3")
    )
    prices = {text for values in catalogue.values.values() for text in values.get("price", ())} - {"cheap"}
    reply = ask(snapshot, kind, histories[:1], filters=[cheap])[0]
    keep = {"price": {text for text in prices if 2 < float(text) <= 3.3}}
    check(reply, kind, catalogue.best(histories[0], 20, keep=keep))
    exclude = {*version.ids[:9], *new[:3]}
    reply = ask(snapshot, kind, histories[:1], exclude=ids(kind, sorted(exclude, key=str)))[0]
    check(reply, kind, catalogue.best(histories[0], 20, exclude=exclude))
    for policy in range(2, 6):
        more = {"diversity": 0.3, "diversity_attribute": "tags"} if policy == 5 else {}
        reply = ask(
            snapshot, kind, histories, merge_policy=policy, num_reasons=2, return_interests=True, **more
        )[1]
        allowed = {id_ for id_ in catalogue.vectors if id_ not in catalogue.removed | catalogue.hidden}
        found = listed(kind, reply.items)
        assert len(found) == len(set(found)) == min(20, len(allowed))
        assert set(found) <= allowed
        assert set(listed(kind, reply.reasons.items)) <= set(histories[1])
        assert listed(kind, reply.interests.attended_items) == histories[1]
    popular = ask(snapshot, kind, [[]], num=200)[0]
    assert popular.is_popularity_fallback
    assert set(listed(kind, popular.items)) == allowed
    if len(catalogue.hidden) == 0:
        assert snapshot.num_items == len(allowed)


@pytest.mark.parametrize(
    "index", ["hnsw", "ivf", "ivf of codes", "ivf, one budget", "ivf of codes, many lists"]
)
@pytest.mark.parametrize("has_index", [False, True])
def test_with_approximate_indexes(index: str, has_index: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live items are all found, whatever the index of the version misses."""
    version, loaded = small("string", index)
    monkeypatch.setattr(overlay, "MIN_ROWS", 50)
    monkeypatch.setattr(overlay, "MIN_NEWER_ROWS", 50)
    monkeypatch.setattr(view, "MIN_ROWS", 50)
    rng = np.random.default_rng(5)
    catalogue, live = LiveCatalogue(version), loaded.new_overlay()
    for number in range(1, 301):
        id_ = version.ids[number] if number % 7 == 0 else f"new {rng.integers(200)}"
        change: Change = (
            Removal(id_) if number % 11 == 0 else upsert(id_, 1.3 * rng.standard_normal(EMBEDDING_DIM))
        )
        live.apply(records_of([change], start=number))
        catalogue.apply(change)
        if has_index and number % 100 == 0:
            while (job := live.next_job()) is not None:
                live.finish(job, job.run())
    if has_index:
        live.apply(records_of([upsert("the last", rng.standard_normal(EMBEDDING_DIM))], start=301))
        catalogue.apply(upsert("the last", live.view().vectors_RD[-1]))
    seen = live.view()
    assert (seen.index is not None) == has_index
    snapshot = loaded.with_live(seen)
    is_live = set(catalogue.vectors) - {
        id_ for id_, vector in catalogue.vectors.items() if catalogue.trained.get(id_) is vector
    }
    histories = [version.ids[start : start + 5] for start in range(0, 60, 5)]
    num_found = num_expected = 0
    for policy in (1, 2):
        for start in range(0, len(histories), 4):
            some = histories[start : start + 4]
            for reply, history in zip(
                ask(snapshot, "string", some, num=30, merge_policy=policy), some, strict=True
            ):
                found = list(reply.items.strings)
                assert len(found) == len(set(found)) == 30
                assert not set(found) & catalogue.removed
                if policy == 1:
                    best = {id_ for id_, _ in catalogue.best(history, 30)} & is_live
                    num_found += len(best & set(found))
                    num_expected += len(best)
    assert num_found >= (0.8 if has_index else 1.0) * num_expected
    assert num_expected > 100


def test_a_view_in_use_does_not_change() -> None:
    version, loaded = small("string", "flat")
    live = loaded.new_overlay()
    live.apply(
        records_of([upsert("a", np.ones(EMBEDDING_DIM)), upsert(version.ids[0], np.ones(EMBEDDING_DIM))])
    )
    before = loaded.with_live(live.view())
    first = [reply.SerializeToString() for reply in ask(before, "string", [version.ids[:3]], num=70)]
    live.apply(
        records_of(
            [Removal("a"), Removal(version.ids[1]), upsert("b", 9 * np.ones(EMBEDDING_DIM), colour=("new",))],
            start=3,
        )
    )
    after = loaded.with_live(live.view())

    def without_times(message: bytes) -> Any:
        reply = retrieval_pb2.RetrieveReply.FromString(message)
        reply.ClearField("stage_times")
        return reply

    again = [reply.SerializeToString() for reply in ask(before, "string", [version.ids[:3]], num=70)]
    assert list(map(without_times, again)) == list(map(without_times, first))
    (reply,) = ask(after, "string", [version.ids[:3]], num=70)
    assert "b" in reply.items.strings
    assert "a" not in reply.items.strings
    assert version.ids[1] not in reply.items.strings
    assert version.ids[0] in reply.items.strings


def test_superseded_slots_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "MIN_ROWS", 10)
    version, loaded = small("string", "flat")
    catalogue, live = LiveCatalogue(version), loaded.new_overlay()
    rng = np.random.default_rng(0)
    for number in range(1, 400):
        change = upsert(f"new {rng.integers(8)}", rng.standard_normal(EMBEDDING_DIM), tags=(str(number),))
        live.apply(records_of([change], start=number))
        catalogue.apply(change)
        while (job := live.next_job()) is not None:
            live.finish(job, job.run())
        assert live.num_slots <= 20
    snapshot = loaded.with_live(live.view())
    (reply,) = ask(snapshot, "string", [version.ids[:3]], num=70)
    check(reply, "string", catalogue.best(version.ids[:3], 70))
    tag = next(iter(catalogue.values["new 3"]["tags"]))
    filters = [retrieval_pb2.AttributeFilter(attribute="tags", values=[tag])]
    assert ask(snapshot, "string", [version.ids[:3]], filters=filters)[0].items.strings == ["new 3"]


@pytest.mark.parametrize("index", ["ivf, one budget", "ivf of codes, many lists"])
def test_live_items_take_no_places_of_items_that_a_search_missed(
    index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that finds too few items is repeated exactly, with live items and without."""
    version, loaded = small("string", index)
    catalogue, live = LiveCatalogue(version), loaded.new_overlay()
    rng = np.random.default_rng(1)
    for number in range(1, 61):
        change = upsert(f"new {number}", 0.01 * rng.standard_normal(EMBEDDING_DIM))
        live.apply(records_of([change], start=number))
        catalogue.apply(change)
    snapshot = loaded.with_live(live.view())
    search_best = Searcher.search_best

    def short(self: Searcher, *args: Any, **kwargs: Any) -> Any:
        found = search_best(self, *args, **kwargs)
        assert found is not None
        rows, scores, numbers = (column.copy() for column in found)
        rows[:, 5:], scores[:, 5:] = -1, -np.inf
        return rows, scores, numbers

    monkeypatch.setattr(Searcher, "search_best", short)
    history = version.ids[:5]
    (reply,) = ask(snapshot, "string", [history], num=30)
    check(reply, "string", catalogue.best(history, 30))
