"""UpsertItems and RemoveItems: checked, durable, and visible on every server of the directory."""

import asyncio
import contextlib
import json
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import polars as pl
import pytest
from in_process_server import drive, serving
from running_server import DEADLINE_S, PAUSE_S, RunningServer
from small_bundles import EMBEDDING_DIM, SmallVersion
from typer.testing import CliRunner

import re4
from re4.bundle.layout import LIVE, LIVE_FOLDER
from re4.bundle.live_items import writer
from re4.bundle.live_items.state import read_live_state
from re4.bundle.verify import read_manifest
from re4.cli import build_app
from re4.common.errors import BundleError, DataError, RequestError, ServerError, UsageError
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.client.client import RetrievalClient
from re4.serving.client.item_values import LiveItem
from re4.serving.settings import Limits
from re4.serving.versions.snapshot import load_snapshot


def run(*words: object, stdin: str | None = None) -> Any:
    line = ["items", *map(str, words)]
    done = CliRunner().invoke(build_app(line), line, input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout) if "--json" in words else done.output


def best_item(version: SmallVersion, history: list[int]) -> list[float]:
    """Return a vector that scores higher than every item, for a history."""
    interest_D = version.encode(history)[0][0]
    return (100 * interest_D / np.linalg.norm(interest_D)).tolist()


def wait_for(client: RetrievalClient, sequence: int) -> None:
    until = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(ServerError):  # its worker was killed
            if client.info()["live_sequence"] >= sequence:
                return
        assert time.monotonic() < until
        time.sleep(PAUSE_S)


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, SmallVersion]:
    version = SmallVersion(has_attributes=True)
    version.publish(tmp_path)
    return tmp_path, version


def test_two_servers_of_one_directory(shop: tuple[Path, SmallVersion]) -> None:
    bundles, version = shop
    history = version.ids[:3]
    item = LiveItem(
        item_id="brand new",
        attributes={"colour": "mauve", "tags": ["a", "z"]},
        vector=best_item(version, [0, 1, 2]),
    )
    with RunningServer(bundles, "--num-processes", "2") as first, RunningServer(bundles) as second:
        with RetrievalClient(first.address) as one, RetrievalClient(second.address) as other:
            done = one.upsert_items([item])
            assert (done.sequence, done.num_unknown) == (1, 0)
            wait_for(other, done.sequence)
            found = other.retrieve(
                history, 3, filters=[re4.AttributeFilter(attribute="colour", values=["mauve"])]
            )
            assert found.item_ids == ["brand new"]
            assert other.retrieve(history, 3).item_ids[0] == "brand new"
            assert other.retrieve(["brand new"], 3).num_unknown_history_ids == 0
            facts = other.info()
            assert (facts["num_live_items"], facts["num_items"]) == (1, 61)
            removed = other.remove_items(["brand new", version.ids[5], "nobody"])
            assert (removed.sequence, removed.num_unknown) == (4, 1)
            for pid in first.workers():  # another worker reads all of it again
                os.kill(pid, signal.SIGKILL)
                break
            wait_for(one, removed.sequence)
            everything = one.retrieve(history, 100).item_ids
            assert len(everything) == 59
            assert not {"brand new", version.ids[5]} & set(everything)
            # A new version that has not taken the changes in answers with them too.
            new = SmallVersion(has_attributes=True, num_items=70)
            name = new.publish(bundles)
            until = time.monotonic() + DEADLINE_S
            while other.info()["version"] != name:
                assert time.monotonic() < until
                time.sleep(PAUSE_S)
            assert len(other.retrieve(history, 100).item_ids) == 69
        (bundles / LIVE).write_bytes(b"{}")
        with RetrievalClient(second.address) as other:
            until = time.monotonic() + DEADLINE_S
            while not other.info()["live_failure"]:
                assert time.monotonic() < until
                time.sleep(PAUSE_S)
            assert version.ids[5] not in other.retrieve(history, 100).item_ids
            with pytest.raises(ServerError, match=r"UNAVAILABLE.*re4 items repair"):
                other.remove_items(["x"])
            assert run("repair", "--bundles", bundles, "--json")["num_items"] == 3
            wait_for(other, other.remove_items(["x"]).sequence)
            assert other.info()["live_failure"] == ""


def test_rejected_in_words(shop: tuple[Path, SmallVersion], monkeypatch: pytest.MonkeyPatch) -> None:
    bundles, _ = shop
    folder = next(path for path in bundles.iterdir() if path.is_dir())
    snapshot = load_snapshot(folder, read_manifest(folder), max_batch_size=4)

    async def call(channel: grpc.aio.Channel, method: str, message: Any) -> pb.EditItemsReply:
        path = f"/re4.v1.Retrieval/{method}"
        return pb.EditItemsReply.FromString(await channel.unary_unary(path)(message.SerializeToString()))

    async def test(_: Any, channel: grpc.aio.Channel) -> None:
        item = pb.LiveItem(string_id="a")
        for method, message, code, words in [
            ("UpsertItems", pb.UpsertItemsRequest(), "INVALID_ARGUMENT", "from 1 to 5"),
            ("UpsertItems", pb.UpsertItemsRequest(items=[item] * 6), "INVALID_ARGUMENT", "items has 6 items"),
            (
                "UpsertItems",
                pb.UpsertItemsRequest(items=[pb.LiveItem(int_id=1)]),
                "INVALID_ARGUMENT",
                "strings",
            ),
            (
                "UpsertItems",
                pb.UpsertItemsRequest(items=[item, pb.LiveItem()]),
                "INVALID_ARGUMENT",
                r"items\[1\]",
            ),
            (
                "UpsertItems",
                pb.UpsertItemsRequest(items=[pb.LiveItem(string_id="a", vector=[1])]),
                "INVALID_ARGUMENT",
                "8 finite",
            ),
            (
                "UpsertItems",
                pb.UpsertItemsRequest(
                    items=[
                        pb.LiveItem(
                            string_id="a", attributes=[pb.AttributeValues(name="is_cold", values=["x"])]
                        )
                    ]
                ),
                "INVALID_ARGUMENT",
                "set by the server",
            ),
            ("RemoveItems", pb.RemoveItemsRequest(items=pb.ItemIds(ints=[1])), "INVALID_ARGUMENT", "strings"),
            ("RemoveItems", pb.RemoveItemsRequest(), "INVALID_ARGUMENT", "from 1 to 5"),
        ]:
            with pytest.raises(grpc.aio.AioRpcError, match=words) as error:
                await call(channel, method, message)
            assert error.value.code().name == code
        assert not (bundles / LIVE).exists()
        # Many calls share commits, and each is durable when it returns.
        calls = [
            call(channel, "UpsertItems", pb.UpsertItemsRequest(items=[pb.LiveItem(string_id=f"new {n}")]))
            for n in range(40)
        ]
        sequences = [reply.sequence for reply in await asyncio.gather(*calls)]
        assert max(sequences) == 40
        assert len(set(sequences)) < 40
        assert len(read_live_state(bundles).items) == 40
        with monkeypatch.context() as patch:
            patch.setattr(writer, "MAX_BYTES", 100)
            with pytest.raises(grpc.aio.AioRpcError, match="let a rebuild take") as error:
                await call(channel, "RemoveItems", pb.RemoveItemsRequest(items=pb.ItemIds(strings=["a"])))
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        reply = await call(channel, "RemoveItems", pb.RemoveItemsRequest(items=pb.ItemIds(strings=["a"])))
        assert reply.sequence == 41

    drive(serving(snapshot), test, limits=Limits(max_num_edited_items=5))


def test_the_scope_of_a_token(shop: tuple[Path, SmallVersion], tmp_path: Path) -> None:
    from re4.serving.auth.tokens import token_hash

    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        f'[reader]\nsha256 = "{token_hash("r").hex()}"\n\n[editor]\nsha256 = "{token_hash("e").hex()}"\n'
        'scopes = ["edit-items"]\n'
    )
    with RunningServer(shop[0], "--tokens", str(tokens)) as server:
        for name, code in (("r", "PERMISSION_DENIED"), ("e", "")):
            connection = re4.Connection(token=name)
            with RetrievalClient(server.address, connection=connection) as client:
                if code:
                    with pytest.raises(ServerError, match=rf"{code}.*edit-items"):
                        client.remove_items(["x"])
                else:
                    assert client.remove_items(["x"]).sequence == 1


def test_the_command(shop: tuple[Path, SmallVersion]) -> None:
    bundles, version = shop
    lines = [
        {"id": "new 1", "attributes": {"colour": "red", "size": 7, "is_even": True, "tags": ["a", "b"]}},
        {"id": "new 2", "vector": [0.5] * EMBEDDING_DIM},
    ]
    file = bundles / "new.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert run("add", file, "--bundles", bundles, "--json") == {"num_items": 2, "sequence": 2}
    assert "1 item added or replaced" in run("add", "-", "--bundles", bundles, stdin='{"id": "new 3"}\n')
    answer = run("remove", version.ids[0], "new 2", "--bundles", bundles, "--json")
    assert answer == {"num_items": 2, "sequence": 5, "not_in_version": ["new 2"]}
    assert "not in the live version" in run("remove", "new 9", "--bundles", bundles)
    assert "not in the live version" in run("hide", "new 1", "nobody", "--bundles", bundles)
    assert run("hide", "new 1", "--bundles", bundles, "--json")["unknown"] == [], "a live item is known"
    run("unhide", "new 1", "--bundles", bundles)
    with re4.Retriever.open(bundles) as retriever:
        everything = retriever.retrieve(version.ids[1:4], 100).item_ids
    assert set(everything) == {*version.ids[1:], "new 1", "new 3"}
    for text, words in [
        ("nonsense", "line 1: not JSON"),
        ('{"id": "a"}\n[]', "line 2: an item is"),
        ('{"id": "a", "colour": "red"}', "an item is"),
        ('{"id": 5}', "strings"),
        ('{"id": "a", "vector": [1]}', "shape"),
        ('{"id": "a", "attributes": {"is_cold": true}}', "set by servers"),
    ]:
        with pytest.raises(UsageError, match=words):
            run("add", "-", "--bundles", bundles, stdin=text)
    with pytest.raises(UsageError, match="cannot be read"):
        run("add", bundles / "none", "--bundles", bundles)
    assert "4 items" not in run("repair", "--bundles", bundles)
    (segment,) = (bundles / LIVE_FOLDER).iterdir()
    segment.write_bytes(segment.read_bytes()[:-2])
    with pytest.raises(BundleError):
        re4.Retriever.open(bundles)
    assert "cut off" in run("repair", "--bundles", bundles)


def test_items_of_a_table_have_the_values_of_an_export(shop: tuple[Path, SmallVersion]) -> None:
    bundles, version = shop
    table = pl.DataFrame(
        {
            "sku": ["new 1", "new 2", version.ids[3]],
            "colour": ["red", None, "blue"],
            "size": [7, 8, None],
            "is_even": [True, False, None],
            "tags": [["a", "b"], [], None],
            "since": [datetime(2026, 1, 31, 12, 30, 0, 5, tzinfo=UTC), None, None],
            "maker": [{"name": "x"}] * 3,
        }
    )
    table.write_parquet(bundles / "new.parquet")
    words = ("--bundles", bundles, "--item-column", "sku")
    assert run("add", bundles / "new.parquet", *words, "--json") == {"num_items": 3, "sequence": 3}
    items = read_live_state(bundles).items
    first, second, third = (items[id_].change for id_ in ("new 1", "new 2", version.ids[3]))
    since = "2026-01-31T12:30:00"
    assert first.attributes == {
        "colour": ("red",),
        "size": ("7",),
        "is_even": ("true",),
        "tags": ("a", "b"),
        "since": (since,),
    }
    assert (second.attributes, third.attributes) == (
        {"size": ("8",), "is_even": ("false",)},
        {"colour": ("blue",)},
    )
    table.select("sku", "size", "colour").write_csv(bundles / "new.csv")
    run("add", bundles / "new.csv", *words, "--column", "size")
    assert read_live_state(bundles).items["new 1"].change.attributes == {"size": ("7",)}
    vectors = pl.DataFrame({"item_id": ["new 5"], "vector": [[0.5] * EMBEDDING_DIM]})
    vectors.write_parquet(bundles / "vectors.parquet")
    run("add", bundles / "vectors.parquet", "--bundles", bundles)
    assert read_live_state(bundles).items["new 5"].change.vector_D.tolist() == [0.5] * EMBEDDING_DIM
    with pytest.raises(
        UsageError, match=r"'maker' cannot be an attribute; those that can are 'colour', 'size'"
    ):
        run("add", bundles / "new.parquet", *words, "--column", "maker")
    pl.DataFrame({"item_id": ["new 6"], "vector": [[0.5]]}).write_parquet(bundles / "vector.parquet")
    with pytest.raises(UsageError, match=r"row 1: .*shape"):
        run("add", bundles / "vector.parquet", "--bundles", bundles)
    with pytest.raises(DataError, match="item_id"):
        run("add", bundles / "new.csv", "--bundles", bundles)


def test_client_values() -> None:
    with RetrievalClient("127.0.0.1:1") as client:
        for wrong, words in [
            (LiveItem(item_id=1.5), "an id is a str or an int"),
            (LiveItem(item_id="a", attributes={"x": b"1.5"}), "bytes"),
            (LiveItem(item_id="\ud800"), "cannot be sent"),
        ]:
            with pytest.raises(RequestError, match=words):
                client.upsert_items([wrong])
