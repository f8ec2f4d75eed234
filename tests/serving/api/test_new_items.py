"""The exploration quota: at most n of M candidates are new items, the best of them; the reply marks them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import RunningServer
from small_bundles import SmallVersion
from typer.testing import CliRunner

from re4 import AttributeFilter, Candidates, RetrievalClient, Retriever
from re4.bundle.layout import IS_COLD
from re4.cli import build_app
from re4.common.errors import RequestError

NEW = AttributeFilter(attribute=IS_COLD, values=["true"])
OTHERS = AttributeFilter(attribute=IS_COLD, values=["true"], drop=True)


@pytest.fixture(scope="module")
def version() -> SmallVersion:
    """A fifth of the items is new; their vectors are short, so that they are in nobody's list."""
    version = SmallVersion(has_attributes=True)
    version.attributes[IS_COLD] = [row >= 48 for row in range(version.num_items)]
    version.vectors_ND[48:] *= 0.01
    return version


@pytest.fixture(scope="module")
def bundles(version: SmallVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with-new-items")
    version.publish(folder)
    return folder


@pytest.fixture(scope="module")
def retriever(bundles: Path) -> Iterator[Retriever]:
    with Retriever.open(bundles, fallback="popular") as retriever:
        yield retriever


def rows_of(version: SmallVersion, found: Candidates) -> list[int]:
    return [version.ids.index(item_id) for item_id in found.item_ids]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_it_is_the_best_others_and_the_best_new_items(
    data: st.DataObject, version: SmallVersion, retriever: Retriever
) -> None:
    history = data.draw(st.lists(st.integers(0, 59), min_size=1, max_size=6))
    num_candidates = data.draw(st.integers(1, 60))
    quota = data.draw(st.integers(1, num_candidates))
    excluded = data.draw(st.lists(st.integers(0, 59), unique=True, max_size=20))
    tag = data.draw(st.sampled_from([None, "a", "b"]))
    found = retriever.retrieve(
        [version.ids[row] for row in history],
        num_candidates,
        exclude=[version.ids[row] for row in excluded],
        filters=[] if tag is None else [AttributeFilter(attribute="tags", values=[tag])],
        num_new_items=quota,
    )
    scores = version.scores(history)
    allowed = [
        row
        for row in range(version.num_items)
        if row not in excluded and (tag is None or tag in version.attributes["tags"][row])
    ]
    by_score = sorted(allowed, key=lambda row: (-scores[row], row))
    new = [row for row in by_score if row >= 48][:quota]
    others = [row for row in by_score if row < 48][: num_candidates - len(new)]
    assert rows_of(version, found) == sorted([*others, *new], key=lambda row: (-scores[row], row))
    marks = [] if found.is_new is None else found.is_new.tolist()
    assert marks == [row >= 48 for row in rows_of(version, found)]
    np.testing.assert_allclose(found.scores, scores[rows_of(version, found)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "policy", ["equal-quota", "attention-quota", "round-robin", "soft-quota", "category-diversity"]
)
def test_other_items_are_merged_by_the_policy(
    policy: str, version: SmallVersion, retriever: Retriever
) -> None:
    history = [version.ids[row] for row in (4, 9, 31)]
    more = {"diversity": 0.5, "diversity_attribute": "colour"} if policy == "category-diversity" else {}
    found = retriever.retrieve(history, 12, merge_policy=policy, num_new_items=4, **more)
    new = retriever.retrieve(history, 4, filters=[NEW])
    others = retriever.retrieve(history, 12, merge_policy=policy, filters=[OTHERS], **more)
    assert set(found.item_ids) == {*others.item_ids[:8], *new.item_ids}
    kept = [item_id for item_id, is_new in zip(found.item_ids, found.is_new, strict=True) if not is_new]
    assert kept == others.item_ids[:8]
    if policy in ("round-robin", "soft-quota", "category-diversity"):
        assert found.item_ids == [*kept, *new.item_ids]
    else:
        assert (np.diff(found.scores) <= 0).all()


def test_without_a_quota_and_without_new_items_nothing_changes(
    version: SmallVersion, retriever: Retriever, tmp_path: Path
) -> None:
    history = [version.ids[row] for row in (4, 9, 31)]
    assert retriever.retrieve(history, 10).is_new is None
    for cold in (None, [False] * version.num_items):
        other = SmallVersion(has_attributes=True)
        if cold is not None:
            other.attributes[IS_COLD] = cold
        folder = tmp_path / str(cold is None)
        other.publish(folder)
        with Retriever.open(folder) as opened:
            found = opened.retrieve(history, 10, num_new_items=5)
            assert found.item_ids == opened.retrieve(history, 10).item_ids
            assert found.is_new.tolist() == [False] * 10


def test_a_quota_is_checked(retriever: Retriever, version: SmallVersion) -> None:
    with pytest.raises(RequestError, match="num_new_items is 11; it must be from 0 to num_candidates, 10"):
        retriever.retrieve([version.ids[0]], 10, num_new_items=11)


def test_a_server_answers_alike(bundles: Path, version: SmallVersion, retriever: Retriever) -> None:
    histories = [[version.ids[row] for row in rows] for rows in ((4, 9, 31), (2, 50), (7,))]
    with RunningServer(bundles, "--fallback", "popular") as server, RetrievalClient(server.address) as client:
        alone = [client.retrieve(each, 10, num_new_items=3) for each in histories]
        batch = client.retrieve_batch([*histories, ["unknown"]], 10, num_new_items=3)
        for each, in_batch, history in zip(alone, batch[:3], histories, strict=True):
            expected = retriever.retrieve(history, 10, num_new_items=3)
            assert each.item_ids == in_batch.item_ids == expected.item_ids
            assert each.is_new.tolist() == in_batch.is_new.tolist() == expected.is_new.tolist()
            assert each.is_new.sum() == 3
        assert batch[3].is_popularity_fallback
        assert not batch[3].is_new.any()
        assert len(batch[3].is_new) == 10
        assert client.retrieve(histories[0], 10).is_new is None
        words = ["retrieve", "--address", server.address, "--history", ",".join(histories[0])]
        words += ["--num-candidates", "10", "--new-items", "3"]
        shown = CliRunner().invoke(build_app(words), words)
        assert shown.exit_code == 0, shown.output
        assert "new" in shown.output
        facts = json.loads(CliRunner().invoke(build_app([*words, "--json"]), [*words, "--json"]).stdout)
        assert [each["is_new"] for each in facts["candidates"]] == alone[0].is_new.tolist()
