"""The supervisor's own decisions, with fake workers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from small_bundles import SmallVersion

from re4.common.errors import ServerError
from re4.serving.host.backoff import Backoff
from re4.serving.processes.messages import HideItems, LoadVersion, SetCanary, StartWorker
from re4.serving.processes.supervisor import _Supervisor
from re4.serving.settings import ServerSettings

START = StartWorker(
    number=1, host="127.0.0.1", port=1, settings="", path=None, files={}, folder="", hidden={}
)


class FakeWorker:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, command: Any) -> None:
        self.sent.append(command)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), BlockingIOError("no process"), None]
)
def test_a_worker_that_does_not_start_or_takes_too_long_is_tried_again(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / SmallVersion().publish(tmp_path)
    supervisor = _Supervisor(tmp_path, ServerSettings(check_timeout_s=0.001 if error is None else 600), None)
    supervisor._set_live(path)
    worker, errors = FakeWorker(), [error]

    async def start(start: StartWorker, environment: Any, **_: Any) -> FakeWorker:
        assert start.path == str(path)
        if errors:
            if (failure := errors.pop()) is None:
                await asyncio.Event().wait()
            raise failure
        return worker

    monkeypatch.setattr("re4.serving.processes.supervisor.WorkerProcess.start", start)
    backoff = Backoff(first_delay_s=0.01, longest_delay_s=0.01)
    asyncio.run(supervisor._restart(START, backoff, uptime_s=0.0))
    assert [type(command) for command in worker.sent] == [HideItems, LoadVersion, SetCanary]


def test_the_first_start_and_the_first_load_of_a_worker_have_a_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = _Supervisor(tmp_path, ServerSettings(check_timeout_s=0.001), None)

    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("re4.serving.processes.supervisor.WorkerProcess.start", hang)
    with pytest.raises(ServerError, match=r"worker 1 was not ready after 0.001 seconds"):
        asyncio.run(supervisor._start(START))
    worker: Any = FakeWorker()
    worker.load_first = hang
    supervisor._workers[1] = worker
    with pytest.raises(ServerError, match=r"worker 1 was not ready after 0.001 seconds"):
        asyncio.run(supervisor._load_first(1))
