"""The streams between supervisor and worker: no line, however wrong, raises."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import CommandFailed, PortOpened, StartWorker, to_line
from re4.serving.processes.worker_commands import Worker
from re4.serving.processes.worker_handle import Unreadable, WorkerProcess

MAX_LINE = 1000
START = StartWorker(
    number=1, host="127.0.0.1", port=1, settings="", path=None, files={}, folder="", hidden={}
)
OPENED, FAILED = to_line(PortOpened()), to_line(CommandFailed(failure="x"))


def reports_of(
    output: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, then: str = ""
) -> tuple[list[Any], str]:
    """What a worker that prints this reports after its start, and how it ended."""
    (tmp_path / "output").write_bytes(OPENED + output)
    worker = tmp_path / "worker"
    worker.write_text(f"#!/bin/sh\ncat {tmp_path / 'output'}\n{then}\n")
    worker.chmod(0o755)
    monkeypatch.setattr("re4.serving.processes.worker_handle.sys.executable", str(worker))
    monkeypatch.setattr("re4.serving.processes.worker_handle.MAX_LINE_BYTES", MAX_LINE)

    async def main() -> tuple[list[Any], str]:
        process = await WorkerProcess.start(START, {}, end_within_s=60)
        return [report async for report in process.reports()], await process.wait()

    return asyncio.run(main())


def kinds(reports: list[Any]) -> list[type]:
    return [type(report) for report in reports]


@pytest.mark.parametrize("bad", [b"\n", b"not a report\n", b"[" * 900 + b"\n", b'{"CommandFailed": {}}\n'])
def test_a_malformed_line_is_skipped(bad: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports, _ = reports_of(bad + FAILED, tmp_path, monkeypatch)
    assert kinds(reports) == [Unreadable, CommandFailed]


def test_an_oversized_line_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = RecallSample(path="x", interests="x" * MAX_LINE, rows=[], excluded=[])
    reports, _ = reports_of(to_line(sample) + FAILED, tmp_path, monkeypatch)
    assert set(kinds(reports)) == {Unreadable, CommandFailed}
    assert kinds(reports)[-1] is CommandFailed


def test_a_line_cut_off_by_the_workers_death_ends_the_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports, ended = reports_of(FAILED + FAILED[:-5], tmp_path, monkeypatch, then="kill -35 $$")
    assert kinds(reports) == [CommandFailed, Unreadable]
    assert ended == "signal 35"


def test_a_worker_whose_stream_is_unusable_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports, ended = reports_of(b"junk\n" * 100_000, tmp_path, monkeypatch, then="sleep 1000")
    assert kinds(reports) == [Unreadable] * 3
    assert ended == "signal SIGKILL"


@pytest.mark.parametrize(
    "bad", [b"\n", b"[" * 900 + b"\n", b'{"HideItems": {}}\n', b"x" * 2 * MAX_LINE + b"\n"]
)
def test_a_command_that_cannot_be_read_ends_the_worker_with_a_reason(
    bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        commands = asyncio.StreamReader(limit=MAX_LINE)
        commands.feed_data(bad)
        await asyncio.wait_for(object.__new__(Worker)._follow(commands), 30)

    asyncio.run(main())
    assert "a command cannot be read, so this worker ends" in caplog.text
