"""`re4 histories`: fill a store, export it, write and erase the event log; a server rotates by itself."""

import subprocess
from pathlib import Path

import polars as pl
import pytest
from running_server import RE4, RunningServer
from small_bundles import SmallVersion

from re4 import RetrievalClient, prepare_data


def run(*words: str) -> str:
    done = subprocess.run([*RE4, "histories", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stderr.split())


def test_a_store_is_filled_served_exported_rotated_and_erased(tmp_path: Path) -> None:
    version = SmallVersion()
    version.publish(tmp_path / "bundles")
    items = [str(item) for item in version.ids[:6]]
    rows = [(f"u{user}", items[(user + place) % 6], 1000 + place) for user in range(12) for place in range(5)]
    log = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    prepare_data(log, tmp_path / "data", min_events=1)
    options = ("--bundles", str(tmp_path / "bundles"))
    assert "60 events of 12 users are new" in run("load", str(tmp_path / "data"), *options)
    assert "0 events of 12 users are new" in run("load", str(tmp_path / "data"), *options)

    with RunningServer(tmp_path / "bundles", "--event-part-s", "1") as server:
        with RetrievalClient(server.address) as client:
            assert [event.item_id for event in client.get_history("u3")] == [row[1] for row in rows[15:20]]
            assert client.record_events(["u3", "new"], items[:2]) == 2
            client.forget_user("u4")
        folder = tmp_path / "bundles.histories" / "events"
        while not list(folder.glob("*.parquet")):
            server.wait_for("listening")  # fails where the server has ended
        (part,) = folder.glob("*.parquet")
        assert pl.read_parquet(part)["user"].to_list() == ["u3", "new"]
    run("rotate", *options)  # writes the same part again if the server stopped before it had noted the part
    assert [pl.read_parquet(each)["user"].to_list() for each in folder.glob("*.parquet")] == [["u3", "new"]]
    assert "0 calls were written" in run("rotate", *options)
    assert "61 events" not in run("erase", *options)

    run("export", *options, "--out", str(tmp_path / "out.parquet"))
    exported = pl.read_parquet(tmp_path / "out.parquet")
    assert exported.filter(user="u3")["item"].to_list() == [*(row[1] for row in rows[15:20]), items[0]]
    assert set(exported["user"]) == {"new", *(f"u{user}" for user in range(12) if user != 4)}


@pytest.mark.parametrize("name", ["rotate", "erase"])
def test_a_command_without_a_store_says_what_to_give(name: str) -> None:
    done = subprocess.run([*RE4, "histories", name], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--bundles" in done.stderr
