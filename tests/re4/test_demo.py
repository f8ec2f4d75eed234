"""`re4 demo`: the server's log is read while the demo calls the server."""

import os
import select
import stat
import sys

from re4 import demo

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
