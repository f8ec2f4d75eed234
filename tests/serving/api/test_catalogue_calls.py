"""GetItems, FindItems and ListValues: by a server, and by `Retriever` with equal answers."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process_server import drive, serving
from running_server import RunningServer
from small_bundles import EMBEDDING_DIM, SmallVersion

from re4 import (
    AttributeFilter,
    CatalogueItem,
    LiveItem,
    RequestError,
    RetrievalClient,
    Retriever,
    ServerError,
)
from re4.bundle.hidden_ids import change_hidden
from re4.bundle.live_items.records import Upsert
from re4.bundle.live_items.writer import append_changes
from re4.bundle.titles import TITLE_COLUMN, title_among
from re4.bundle.verify import verify_version
from re4.common.attribute_values import value_text
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.observability.call_context import CURRENT_CALL, Call
from re4.serving.versions.snapshot import load_snapshot

VERSION = SmallVersion(has_attributes=True, has_titles=True)
RED = AttributeFilter(attribute="colour", values=["red"])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    VERSION.publish(folder)
    change_hidden(folder, hide=["item-7-é"], kind="string")
    return folder


@pytest.fixture(scope="module")
def client(bundles: Path) -> Iterator[RetrievalClient]:
    with RunningServer(bundles) as server, RetrievalClient(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def retriever(bundles: Path) -> Iterator[Retriever]:
    with Retriever.open(bundles) as opened:
        yield opened


@pytest.fixture(params=["client", "retriever"])
def source(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def plain(item: CatalogueItem) -> dict[str, Any]:
    return {name: value for name, value in asdict(item).items() if name != "vector"}


def test_items_have_titles_attributes_and_vectors(source: RetrievalClient) -> None:
    ids = ["item-1-é", "nobody", "item-7-é", "item-59-é"]
    one, unknown, hidden, last = source.get_items(ids, return_vectors=True)
    assert plain(one) == {
        "item_id": "item-1-é",
        "is_known": True,
        "title": "Blue <b>Kettle</b> 1",
        "attributes": {
            name: values for name, column in VERSION.attributes.items() if (values := as_texts(column[1]))
        },
        "is_hidden": False,
        "is_live": False,
    }
    assert one.vector is not None
    np.testing.assert_array_equal(one.vector, VERSION.vectors_ND[1])
    assert not unknown.is_known
    assert (unknown.title, unknown.attributes, unknown.vector) == ("", {}, None)
    assert hidden.is_hidden
    assert last.is_known
    assert last.title == ""
    assert source.get_items(ids)[0].vector is None


def as_texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for each in values if (text := value_text(each)) is not None]


def test_words_of_titles_find_items_in_any_case(source: RetrievalClient) -> None:
    found = source.find_items("éclair CAFÉ", num_items=60)
    assert set(found) == {f"item-{row}-é" for row in range(2, 59, 3)}
    assert source.find_items("red 12") == ["item-12-é"]
    assert source.find_items("kettle bicycle") == []
    assert source.find_items("item-59-é") == ["item-59-é"]
    assert len(source.find_items("red", num_items=4)) == 4


def test_items_are_found_by_attributes(source: RetrievalClient) -> None:
    red = {f"item-{row}-é" for row, colour in enumerate(VERSION.attributes["colour"]) if colour == "red"}
    assert set(source.find_items(filters=[RED], num_items=60)) == red - {"item-7-é"}
    titled = {f"item-{row}-é" for row in range(0, 60, 3)}
    assert set(source.find_items("bicycle", filters=[RED], num_items=60)) == red & titled


def test_popular_items_are_first(source: RetrievalClient) -> None:
    popular = [f"item-{row}-é" for row in VERSION.popular_rows]
    assert source.find_items(num_items=60)[: len(popular)] == popular
    assert len(source.find_items(num_items=60)) == 60


def test_values_have_their_numbers_of_items(source: RetrievalClient) -> None:
    colours = [colour for colour in VERSION.attributes["colour"] if colour]
    found = source.list_values("colour")
    assert found == {colour: colours.count(colour) for colour in ("red", "green", "blue")}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert list(source.list_values("colour", like="gren", num_values=1)) == ["green"]
    assert next(iter(source.list_values("colour", like="RED"))) == "red"
    assert source.list_values("is_even", like="xyz") == {}


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("get_items", ([],), "items is empty"),
        ("get_items", ([1],), "this catalogue's ids are strings"),
        ("find_items", ("x" * 201,), "text has 201 characters"),
        ("list_values", ("size",), "attribute is 'size'; version .* has colour, tags, is_even"),
        ("list_values", ("colour", "x" * 201), "like has 201 characters"),
    ],
)
def test_wrong_values_are_named(
    source: RetrievalClient, method: str, arguments: tuple[Any, ...], message: str
) -> None:
    keywords = {"like": arguments[1]} if len(arguments) > 1 else {}
    with pytest.raises((RequestError, ServerError), match=message):
        getattr(source, method)(arguments[0], **keywords)
    with pytest.raises((RequestError, ServerError), match=r"num_items is 0|num_values is 0|item_ids holds"):
        {
            "get_items": lambda: source.get_items(["a", 1]),  # type: ignore[list-item]
            "find_items": lambda: source.find_items(num_items=0),
            "list_values": lambda: source.list_values("colour", num_values=0),
        }[method]()


def test_live_items_have_their_new_values(bundles: Path, client: RetrievalClient) -> None:
    item = LiveItem(item_id="newest", attributes={"colour": "mauve"}, vector=np.ones(EMBEDDING_DIM))
    done = client.upsert_items([item])
    with Retriever.open(bundles) as opened:
        (found,) = opened.get_items(["newest"])
        assert found.attributes == {"colour": ["mauve"]}
        assert found.is_live
        assert opened.find_items("newest") == ["newest"]
        assert opened.info()["live_sequence"] == done.sequence
    client.remove_items(["newest"])


def test_live_items_have_titles_and_are_found_by_them(bundles: Path, client: RetrievalClient) -> None:
    """A new item's title is its attribute; a changed item keeps the version's title until it gets its own."""
    changed, renamed = "item-3-é", "item-6-é"
    done = client.upsert_items(
        [
            LiveItem(item_id="fresh", attributes={"title": "  Teal\nTricycle ", "colour": "teal"}),
            LiveItem(item_id=changed, attributes={"colour": "red"}),
            LiveItem(item_id=renamed, attributes={"title": "Tandem"}),
        ]
    )
    try:
        with Retriever.open(bundles) as opened:
            assert opened.info()["live_sequence"] == done.sequence
            before = [opened.get_items([id_])[0].title for id_ in ("item-0-é", changed)]
            fresh, kept, new = opened.get_items(["fresh", changed, renamed])
            assert (fresh.title, kept.title, new.title) == ("Teal Tricycle", before[1], "Tandem")
            assert "title" not in fresh.attributes
            assert opened.find_items("tricycle TEAL") == ["fresh"]
            assert opened.find_items("tandem") == [renamed]
            bicycles = opened.find_items("bicycle", num_items=60)
            assert changed in bicycles
            assert renamed not in bicycles
            assert opened.find_items("bicycle 3", filters=[RED], num_items=60).count(changed) == 1
            all_items = opened.find_items(num_items=100)
            assert len(all_items) == len({*all_items}) == 61
            assert all_items[-1] == "fresh"
    finally:
        client.remove_items(["fresh"])


def test_a_version_without_titles_shows_those_of_live_items(tmp_path: Path) -> None:
    SmallVersion(has_attributes=True).publish(tmp_path)
    with Retriever.open(tmp_path) as opened:
        assert not opened.info()["has_titles"]
    change = Upsert("fresh", {"name": ("A name",), "other": ("x",)})
    append_changes(tmp_path, [change])
    with Retriever.open(tmp_path) as opened:
        assert opened.info()["has_titles"]
        assert opened.get_items(["fresh", "item-1-é"])[0].title == "A name"
        assert opened.find_items("name") == ["fresh"]


@pytest.mark.parametrize(
    ("lineage", "title"),
    [({}, "t"), ({TITLE_COLUMN: "label"}, "l"), ({TITLE_COLUMN: ""}, ""), ({TITLE_COLUMN: "other"}, "")],
)
def test_the_title_is_the_value_of_the_versions_column(lineage: dict[str, str], title: str) -> None:
    values = {"name": ("n",), "title": ("t",), "label": ("l", "m")}
    assert title_among(values, lineage) == title


def test_info_of_a_retriever_is_that_of_a_server(client: RetrievalClient, retriever: Retriever) -> None:
    one, other = client.info(), retriever.info()
    for name in ("version", "created_at", "index_recall", "has_titles", "attributes", "num_interests"):
        assert one[name] == other[name]
    assert one["has_titles"]
    assert one["index_recall"] == 1.0


def test_a_search_is_charged_and_ends_at_its_deadline(tmp_path: Path) -> None:
    version = SmallVersion(num_items=5_000, has_titles=True)
    path = tmp_path / version.publish(tmp_path)
    live = serving(load_snapshot(path, verify_version(path), max_batch_size=8))

    charged: list[int] = []

    class Charged(Call):
        def charge(self, num_users: int) -> None:
            charged.append(num_users)

    async def test(server: Any, channel: Any) -> None:
        CURRENT_CALL.set(Charged("FindItems", ()))
        request = pb.FindItemsRequest(text="bicycle", num_items=5).SerializeToString()
        with pytest.raises(Exception, match="the deadline passed while the catalogue was read"):
            await server._service._find_items(request, lambda: 0.0)
        reply = pb.FindItemsReply.FromString(await server._service._find_items(request, lambda: 1.0))
        assert len(reply.items.strings) == 5
        assert reply.has_more
        assert charged == [6, 6], "a search is charged by the titles that it reads"

    drive(live, test)
