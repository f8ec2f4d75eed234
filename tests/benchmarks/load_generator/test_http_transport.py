"""The runner against HTTP servers: the same schedule, the same arithmetic, failures that count."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Self

import pytest

from re4.benchmarks.load_generator.call_stats import CallStats
from re4.benchmarks.load_generator.client import LoadClient
from re4.benchmarks.load_generator.http_transport import HttpTransport
from re4.benchmarks.load_generator.load import ClientSettings, ClosedLoad, OpenLoad, Timing
from re4.benchmarks.load_generator.outcome import MISSED_DEADLINE
from re4.benchmarks.serve import runner
from re4.benchmarks.serve.runner import measure_ceiling
from re4.common.errors import ServerError

TRANSPORT = HttpTransport(path="/retrieve")
DEADLINE_S = 60


class HttpServer:
    """Answers the number-th request after `delay(number)`, each connection in turn. Runs in a thread."""

    def __init__(
        self,
        delay: Callable[[int], Awaitable[None]],
        *,
        answer: Callable[[int], bytes] = lambda number: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ) -> None:
        self._delay, self._answer = delay, answer
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.num_connections = self.num_calls = 0
        self.first_request = b""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(DEADLINE_S)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._answer_all, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._over.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.05)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writers.add(writer)
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            self.first_request = self.first_request or head + body
            number, self.num_calls = self.num_calls, self.num_calls + 1
            await self._delay(number)
            data = self._answer(number)
            writer.write(data[:25])  # replies come in pieces
            await asyncio.sleep(0)
            writer.write(data[25:])
        writer.close()


async def at_once(number: int) -> None:
    pass


def measure(
    server: HttpServer, load: OpenLoad | ClosedLoad, *, seconds: float = 1.0, deadline_s: float = 5.0
) -> CallStats:
    timing = Timing(warmup_s=0.2, duration_s=seconds, deadline_s=deadline_s)
    with LoadClient(server.address, [b"{}"], ClientSettings(num_channels=2), TRANSPORT) as client:
        return client.run(load, timing, seed=1, version="")


def test_a_constant_delay_is_every_percentile_and_connections_grow_with_what_is_under_way() -> None:
    async def delay(number: int) -> None:
        await asyncio.sleep(0.05)

    with HttpServer(delay) as server:
        stats = measure(server, OpenLoad(rate_per_s=200, arrivals="constant"))
    assert stats.num_calls == 200
    found = stats.percentile_ms(1), stats.percentile_ms(50)
    assert None not in found
    assert 50 <= found[0] <= found[1] <= 80
    assert stats.failures.total() == 0
    assert stats.stages_us["search"].count == stats.batch_size.count == 0
    assert 10 <= server.num_connections <= 60  # 200/s of 50 ms each
    assert server.first_request.startswith(b"POST /retrieve HTTP/1.1\r\n")
    assert server.first_request.endswith(b"\r\n\r\n{}")


def test_errors_and_late_replies_are_failed_calls() -> None:
    async def delay(number: int) -> None:
        await asyncio.sleep(3 if number % 10 == 3 else 0)

    def answer(number: int) -> bytes:
        status = b"503 Busy" if number % 10 == 5 else b"200 OK"
        return b"HTTP/1.1 %b\r\nContent-Length: 4\r\n\r\nfull" % status

    with HttpServer(delay, answer=answer) as server:
        stats = measure(server, OpenLoad(rate_per_s=100, arrivals="constant"), deadline_s=1.0)
    assert stats.num_calls == 100
    assert stats.failures == {MISSED_DEADLINE: 10, "HTTP_503": 10}
    assert stats.failure_details["HTTP_503"] == "full"


def test_a_server_that_dies_ends_the_run() -> None:
    timing = Timing(warmup_s=0.1, duration_s=60, deadline_s=5)
    with HttpServer(at_once) as server:

        def stop_after_50(num_answered: int, num_failed: int) -> None:
            if num_answered > 50:
                server.stop()

        with LoadClient(server.address, [b"{}"], ClientSettings(), TRANSPORT) as client:
            load = OpenLoad(rate_per_s=100, arrivals="constant")
            stats = client.run(load, timing, seed=1, version="", watch=stop_after_50)
    assert stats.stopped is not None
    assert "cannot be reached any more" in stats.stopped


def test_nobody_listening_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("re4.benchmarks.load_generator.client.CONNECT_TIMEOUT_S", 0.5)
    with (
        pytest.raises(ServerError, match="Is a server running there"),
        LoadClient("127.0.0.1:1", [b"{}"], ClientSettings(), TRANSPORT),
    ):
        pass


def test_the_client_measures_itself_against_a_null_server_that_speaks_http(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "_CEILING_TIMING", Timing(warmup_s=0.1, duration_s=0.4, deadline_s=10))
    found = measure_ceiling([b"{}"], b"x" * 3000, ClientSettings(), version="", transport=TRANSPORT)
    assert found > 200
