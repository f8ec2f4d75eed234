"""`re4 retrieve` against a running server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import RunningServer
from small_bundles import SmallVersion

from re4 import ServerError, UsageError
from re4.serving.client.cli import attributes, health, retrieve

TITLED = SmallVersion(has_attributes=True, has_titles=True)


@pytest.fixture(scope="module")
def titled_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("titled")
    TITLED.publish(folder)
    with RunningServer(folder) as server:
        yield server


def test_retrieve_as_json(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [4, 9]
    retrieve(
        [f"{small_version.ids[4]}, {small_version.ids[9]},unknown"],
        address=server.address,
        num_candidates=5,
        exclude=[small_version.ids[7]],
        exclude_history=True,
        merge="max-score",
        as_json=True,
    )
    answer = json.loads(capsys.readouterr().out)
    expected = small_version.best(history, 5, excluded=[7, *history])
    assert [one["item_id"] for one in answer["candidates"]] == [small_version.ids[row] for row in expected]
    assert answer["num_unknown_history_ids"] == 1


def test_integers_are_sent_as_integers(
    int_server: RunningServer, int_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieve(
        [f"{int_version.ids[4]},{int_version.ids[9]}"],
        address=int_server.address,
        num_candidates=5,
        as_json=True,
    )
    answer = json.loads(capsys.readouterr().out)
    expected = [int_version.ids[row] for row in int_version.best([4, 9], 5)]
    assert [one["item_id"] for one in answer["candidates"]] == expected
    with pytest.raises(UsageError, match="--history 'a,b': this catalogue's ids are integers"):
        retrieve(["a,b"], address=int_server.address)


def test_retrieve_for_people(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieve([f"unknown,{small_version.ids[4]}"], address=server.address, num_candidates=3)
    said = capsys.readouterr()
    for row in small_version.best([4], 3):
        assert str(small_version.ids[row]) in said.out
    assert "1 ids of the history are unknown" in said.err


def test_filters_and_reasons(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = small_version.ids
    asked = {"address": server.address, "num_candidates": 60, "reasons": 2}
    retrieve([f"{ids[4]},{ids[9]}"], keep=["tags=a, b"], drop=["is_even=true"], **asked, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    expected = {
        ids[row] for row in range(1, 60, 2) if {"a", "b"} & set(small_version.attributes["tags"][row])
    }
    assert {one["item_id"] for one in answer["candidates"]} == expected
    assert all({one["item_id"] for one in each} == {ids[4], ids[9]} for each in answer["reasons"])
    retrieve([f"{ids[4]},{ids[9]}"], keep=["price>=2", "price < 3"], drop=["price<=2"], **asked, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert {one["item_id"] for one in answer["candidates"]} == set(ids[9:12])
    retrieve([f"{ids[4]},{ids[9]}"], keep=["tags=a"], **asked)
    said = capsys.readouterr().out
    assert "because of" in said
    assert "%)" in said
    with pytest.raises(UsageError, match="--drop 'tags': give an attribute and its values"):
        retrieve([ids[4]], address=server.address, drop=["tags"])


def test_variety(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieve(
        [small_version.ids[4]],
        address=server.address,
        num_candidates=4,
        merge="category-diversity",
        diversity=1e6,
        diversity_attribute="colour",
        as_json=True,
    )
    found = json.loads(capsys.readouterr().out)["candidates"]
    colours = [small_version.attributes["colour"][small_version.ids.index(one["item_id"])] for one in found]
    assert len(set(colours)) == 4


def test_ids_of_a_file_may_contain_commas(
    server: RunningServer, small_version: SmallVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{small_version.ids[4]}\nan id, with a comma\n\n{small_version.ids[9]}\n")
    retrieve([f"@{ids}"], address=server.address, num_candidates=5, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    expected = [small_version.ids[row] for row in small_version.best([4, 9], 5)]
    assert [one["item_id"] for one in answer["candidates"]] == expected
    assert answer["num_unknown_history_ids"] == 1
    with pytest.raises(UsageError, match=r"--history @.*missing\.txt: .*No such file"):
        retrieve([f"@{tmp_path / 'missing.txt'}"], address=server.address)


def test_repeated_options_are_ids_that_may_contain_commas(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = small_version.ids
    retrieve([ids[4], "an id, with a comma", ids[9]], address=server.address, num_candidates=5, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert [one["item_id"] for one in answer["candidates"]] == [
        ids[row] for row in small_version.best([4, 9], 5)
    ]
    assert answer["num_unknown_history_ids"] == 1


def test_a_filter_value_that_no_item_has_is_an_empty_answer_with_a_hint(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieve([small_version.ids[4]], address=server.address, keep=["colour=reed", "tags=zzz"])
    said = capsys.readouterr()
    assert "0 candidates" in said.out
    assert "No item has colour = reed; the nearest are red" in said.err
    assert "No item has tags = zzz; values are such as" in said.err


def test_titles_and_chosen_attributes_are_shown(
    titled_server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"address": titled_server.address, "num_candidates": 4, "show": ["colour", "tags"]}
    retrieve([TITLED.ids[4]], **asked, as_json=True)
    for one in json.loads(capsys.readouterr().out)["candidates"]:
        row = TITLED.ids.index(one["item_id"])
        assert one["title"] == TITLED.titles[row]
        assert one["attributes"] == {
            "colour": [TITLED.attributes["colour"][row]] if TITLED.attributes["colour"][row] else [],
            "tags": TITLED.attributes["tags"][row],
        }
    retrieve([TITLED.ids[4]], **asked)
    said = capsys.readouterr().out
    assert {"title", "colour", "tags"} <= set(re.findall(r"\w+", said))
    assert TITLED.titles[TITLED.best([4], 1)[0]] in said
    retrieve([TITLED.ids[4]], address=titled_server.address, num_candidates=2, reasons=1)
    assert f"{TITLED.titles[4]} (100%)" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--show size: there is no such attribute; there is colour, tags"):
        retrieve([TITLED.ids[4]], address=titled_server.address, show=["size"])


def test_attributes_and_their_values_are_listed(
    titled_server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes(address=titled_server.address)
    said = capsys.readouterr().out
    assert "several" in said
    assert "red" in said
    attributes(address=titled_server.address, as_json=True)
    assert list(json.loads(capsys.readouterr().out)["attributes"])[:2] == ["colour", "tags"]
    attributes("colour", address=titled_server.address, like="gren", as_json=True)
    values = json.loads(capsys.readouterr().out)["values"]
    assert values["green"] == TITLED.attributes["colour"].count("green")
    attributes("colour", address=titled_server.address)
    assert "3 of 3 values of colour" in capsys.readouterr().out


def test_health_of_a_server(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    health(address=server.address)
    assert capsys.readouterr().err == f"{server.address} is SERVING\n"
    with pytest.raises(ServerError, match=r"UNAVAILABLE from 127\.0\.0\.1:9"):
        health(address="127.0.0.1:9")
