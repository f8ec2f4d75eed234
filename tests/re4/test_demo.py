"""`re4 demo`: the server's log is read during the calls; candidates are grouped by interest."""

import os
import select
import stat
import sys
from types import SimpleNamespace

import numpy as np
import polars as pl

from re4 import demo
from re4.training.data.dataset import Sequences

SERVER = """#!{python}
# Stands for `python -m re4.cli …`: each step succeeds; the server logs more than a pipe holds.
import signal, sys
if "serve" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("listening on 127.0.0.1:1", file=sys.stderr, flush=True)
    for number in range(1000):
        print("call", number, "x" * 100, file=sys.stderr, flush=True)
    with open({fifo!r}, "w") as fifo:
        fifo.write("all was logged")
    signal.pause()
"""


def test_a_server_that_logs_more_than_a_pipe_holds_does_not_stop(tmp_path, monkeypatch, capsys):
    fifo, python, folder = tmp_path / "fifo", tmp_path / "python", tmp_path / "demo"
    os.mkfifo(fifo)
    python.write_text(SERVER.format(python=sys.executable, fifo=str(fifo)))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    for made in ("raw/events.csv", "ml-100k/dataset.json", "run/config.json", "bundles/CURRENT"):
        (folder / made).parent.mkdir(parents=True)
        (folder / made).touch()
    answered = []

    def call_server(address, data):
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        is_written, _, _ = select.select([reader], [], [], 60)
        answered.append((address, os.read(reader, 100) if is_written else b"the server waits for its log"))
        os.close(reader)

    monkeypatch.setattr(demo, "_retrieve", call_server)
    demo.demo(folder)
    assert answered == [("127.0.0.1:1", b"all was logged")]
    shown = capsys.readouterr().err
    assert "call 999" in shown
    assert "exit code 0" in shown


ATTENDED = [3, 1, 2]


class KnownAnswers:
    """Stands for the client: interest 1 finds item 7, interest 0 items 5 and 6; user 0 uses one interest."""

    def retrieve(self, history, num_candidates, **options):
        assert options["merge_policy"] == "soft-quota"
        vectors = np.eye(2, 3, dtype=np.float32)
        return SimpleNamespace(
            item_ids=[5, 7, 6],
            interest_index=np.array([0, 1, 0] if history == ATTENDED else [0, 0, 0]),
            interests=SimpleNamespace(
                vectors=vectors,
                attention=np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], np.float32),
                attended_item_ids=ATTENDED,
            ),
        )


def test_candidates_are_grouped_by_interest_beside_one_interest_and_the_most_popular(monkeypatch, capsys):
    monkeypatch.setattr(demo, "_NUM_CANDIDATES", 3)
    monkeypatch.setattr(demo, "_NUM_USERS", 1)
    monkeypatch.setattr(demo, "_OWN_LIST", 3)
    monkeypatch.setattr(demo.stdout_console, "width", 120)
    # Rows are in order of popularity.
    ids = [1, 2, 3, 4, 5, 6, 7]
    held_out = Sequences(
        items_E=np.array([0, 1, 3, 2, 0, 1, 6], np.int32),
        offsets_U1=np.array([0, 3, 7]),
        num_history_U=np.array([2, 3], np.int32),
    )
    dataset = SimpleNamespace(
        test=held_out, items=lambda: pl.DataFrame({"item_id": ids}), users=lambda split: ["first", "second"]
    )
    vectors = np.zeros((7, 3), np.float32)
    vectors[:, 0] = [0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.5]
    client, titles = KnownAnswers(), {item: f"film {item}" for item in ids}
    assert demo._users_with_distinct_interests(client, dataset, vectors) == [1], (
        "both interests have candidates"
    )
    demo._show_user(client, dataset, 1, titles, vectors)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0].startswith("User second, 3 events")
    assert lines[1:6] == [
        "interest 0: film 2 70% · film 1 20% · film 3 10%",
        "film 5",
        "film 6",
        "interest 1: film 3 50% · film 2 25% · film 1 25%",
        "film 7 ✓",
    ]
    table = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    assert table == [
        ["film 5", "film 5", "film 4"],
        ["film 7 ✓", "film 6", "film 5"],
        ["film 6", "film 7 ✓", "film 6"],
    ]
