"""Hidden items: one file, replaced as a whole and read strictly; it keeps ids that no version has."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_bundles import SmallVersion
from typer.testing import CliRunner

from re4.bundle.hidden_ids import (
    MAX_NUM_HIDDEN,
    HiddenIds,
    change_hidden,
    read_hidden,
    write_hidden,
)
from re4.bundle.ids.id_map import ItemIds, write_item_ids
from re4.bundle.layout import CURRENT, HIDDEN
from re4.bundle.publishing.directory_lock import change_lock
from re4.cli import build_app
from re4.common.errors import BundleBusyError, BundleDamagedError, BundleError, UsageError


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    SmallVersion().publish(tmp_path)
    return tmp_path


def run(*words: object) -> Any:
    line = ["items", *map(str, words)]
    done = CliRunner().invoke(build_app(line), line)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout) if "--json" in words else done.output


def test_without_the_file_nothing_is_hidden(tmp_path: Path) -> None:
    assert read_hidden(tmp_path) == HiddenIds()


def test_hide_unhide_list(shop: Path) -> None:
    answer = run("hide", "item-3-é", "item-1-é", "later", "--bundles", shop, "--json")
    assert answer == {"num_hidden": 3, "hidden": ["item-3-é", "item-1-é", "later"], "unknown": ["later"]}
    answer = run("hide", "item-1-é", "item-5-é", "--bundles", shop, "--json")
    assert answer == {"num_hidden": 4, "hidden": ["item-5-é"], "unknown": []}
    answer = run("unhide", "item-3-é", "item-9-é", "--bundles", shop, "--json")
    assert answer == {"num_hidden": 3, "unhidden": ["item-3-é"], "not_hidden": ["item-9-é"]}
    assert run("list", "--bundles", shop, "--json")["hidden"] == ["item-1-é", "item-5-é", "later"]
    assert read_hidden(shop).ids == ("item-1-é", "item-5-é", "later")


def test_for_people(shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("hide", "nobody", "--bundles", shop)
    run("unhide", "nobody", "stranger", "--bundles", shop)
    run("hide", "item-2-é", "--bundles", shop)
    assert "item-2-é" in run("list", "--bundles", shop)


def test_ids_from_a_file(shop: Path) -> None:
    (shop / "ids.txt").write_text("item-1-é\n\n  item-2-é \n", encoding="utf-8")
    run("hide", "item-3-é", "--from", shop / "ids.txt", "--bundles", shop)
    assert read_hidden(shop).ids == ("item-1-é", "item-2-é", "item-3-é")


def test_hidden_items_outlive_rebuilds_and_kinds(shop: Path) -> None:
    run("hide", "1007", "x", "--bundles", shop)
    SmallVersion(id_kind="int", seed=1).publish(shop)
    assert read_hidden(shop).of_kind("int") == [1007]
    assert run("hide", "1014", "--bundles", shop, "--json")["num_hidden"] == 2
    assert read_hidden(shop) == HiddenIds(id_kind="int", ids=(1007, 1014))
    assert read_hidden(shop).of_kind("string") == ["1007", "1014"]


@pytest.mark.parametrize(
    "words",
    [[], ["hide"], ["hide", ""], ["hide", "x" * 1025], ["hide", "--from", "nowhere.txt"]],
)
def test_wrong_words_change_nothing(shop: Path, words: list[str]) -> None:
    if not words:
        SmallVersion(id_kind="int", seed=1).publish(shop)
        words = ["hide", "not-a-number"]
    with pytest.raises(UsageError):
        run(*words, "--bundles", shop)
    assert not (shop / HIDDEN).exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"schema_version": 1, "id_kind": "string"}',
        '{"schema_version": 1, "id_kind": "string", "ids": ["a", 1]}',
        '{"schema_version": 1, "id_kind": "int", "ids": [true]}',
        '{"schema_version": 1, "id_kind": "float", "ids": []}',
        '{"schema_version": 1, "id_kind": ["int"], "ids": []}',
        '{"schema_version": 1, "id_kind": "string", "ids": {}}',
    ],
)
def test_a_damaged_file_is_refused_and_not_written_over(shop: Path, content: str) -> None:
    (shop / HIDDEN).write_text(content)
    with pytest.raises(BundleDamagedError, match=HIDDEN):
        read_hidden(shop)
    with pytest.raises(BundleDamagedError, match=HIDDEN):
        run("hide", "item-1-é", "--bundles", shop)
    assert (shop / HIDDEN).read_text() == content


def test_an_id_that_is_no_text_does_not_stop_the_hiding_of_others(shop: Path) -> None:
    (shop / HIDDEN).write_text('{"schema_version": 1, "id_kind": "string", "ids": ["\\ud800"]}')
    run("hide", "item-1-é", "--bundles", shop)
    assert read_hidden(shop).ids == ("item-1-é", "\ud800")


def test_a_later_schema_is_refused(shop: Path) -> None:
    (shop / HIDDEN).write_text('{"schema_version": 2, "id_kind": "string", "ids": []}')
    with pytest.raises(BundleError, match="schema_version is 2"):
        read_hidden(shop)


def test_a_link_is_not_followed(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"schema_version": 1, "id_kind": "string", "ids": []}')
    (shop / HIDDEN).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleDamagedError, match="not a regular file"):
        read_hidden(shop)


def test_there_is_a_limit(shop: Path) -> None:
    write_hidden(shop, HiddenIds(id_kind="int", ids=tuple(range(MAX_NUM_HIDDEN))))
    with pytest.raises(BundleError, match="100,001 items would be hidden"):
        change_hidden(shop, hide=["x"], kind="string")
    with pytest.raises(BundleError, match="bytes"):
        write_hidden(shop, HiddenIds(ids=("x" * (9 << 20),)))
    assert len(read_hidden(shop).ids) == MAX_NUM_HIDDEN


def test_changes_wait_for_each_other(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("re4.bundle.publishing.directory_lock._PATIENCE_S", 0)
    with change_lock(shop), pytest.raises(BundleBusyError):
        change_hidden(shop, hide=["x"], kind="string")
    assert not (shop / HIDDEN).exists()


def test_nothing_else_is_left(shop: Path) -> None:
    before = {path.name for path in shop.iterdir()}
    run("hide", "item-1-é", "--bundles", shop)
    assert {path.name for path in shop.iterdir()} == before | {HIDDEN}
    assert CURRENT in before


@pytest.fixture(scope="module")
def both_kinds(tmp_path_factory: pytest.TempPathFactory) -> list[ItemIds]:
    strings, integers = tmp_path_factory.mktemp("strings"), tmp_path_factory.mktemp("integers")
    write_item_ids(strings, ["1", "a"])
    write_item_ids(integers, [1, 2])
    return [ItemIds.open(strings, "string", 2), ItemIds.open(integers, "int", 2)]


_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_ANY_LIST = st.fixed_dictionaries(
    {
        "schema_version": st.just(1) | _ANY_JSON,
        "id_kind": st.sampled_from(["string", "int"]) | _ANY_JSON,
        "ids": st.lists(st.text()) | st.lists(st.integers()) | _ANY_JSON,
    }
)


@given(st.binary() | _ANY_LIST.map(lambda value: json.dumps(value).encode()))
def test_any_content_is_refused_or_usable_with_every_catalogue(
    tmp_path_factory: pytest.TempPathFactory, both_kinds: list[ItemIds], content: bytes
) -> None:
    bundles = tmp_path_factory.getbasetemp() / "any"
    bundles.mkdir(exist_ok=True)
    (bundles / HIDDEN).write_bytes(content)
    try:
        hidden = read_hidden(bundles)
    except BundleError:
        return
    for item_ids in both_kinds:
        ids = hidden.of_kind(item_ids.kind)
        assert len(item_ids.rows(ids)) == len(ids)
