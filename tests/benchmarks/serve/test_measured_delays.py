"""`re4 bench serve` measures the delays of known servers. Run alone: another load would add to them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from known_server import KnownServer
from serve_reports import options, read

from re4.benchmarks.serve.benchmark import run


def test_two_servers_in_pairs_give_ratios_with_intervals(tmp_path: Path, ids_file: Path) -> None:
    def delay_of(seconds: float) -> Callable[[int], Awaitable[None]]:
        async def delay(number: int) -> None:
            await asyncio.sleep(seconds)

        return delay

    with KnownServer(delay_of(0.05)) as server, KnownServer(delay_of(0.15)) as other:
        run(options(server, ids_file, tmp_path, against_address=other.address))
        assert abs(server.num_calls - other.num_calls) < 60  # the same load; first looks beside it
    report = read(tmp_path)
    against = report["against"]
    assert against["server"]["address"] == other.address
    assert [len(point["runs"]) for point in (*report["points"], *against["points"])] == [3, 3]
    found = against["ratios"]["p50_ms"]
    assert 2 < found["low"] <= found["mean"] <= found["high"] < 4
    assert against["ratios"]["answers_per_s"]["mean"] == pytest.approx(1, rel=0.3)
    assert against["ratios"]["server_cores"] is None
    text = (tmp_path / "report.md").read_text()
    assert f", at {other.address}\n" in text
    assert "| p50 ms |" in text


def test_a_sweep_ends_where_the_objective_is_missed(
    tmp_path: Path, ids_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("re4.benchmarks.serve.sweep._NUM_HALVINGS", 1)
    lock = asyncio.Lock()

    async def queue(number: int) -> None:
        async with lock:  # one call at a time, 10 ms each: 100 calls a second are all that it can do
            await asyncio.sleep(0.01)

    with KnownServer(queue) as server:
        run(options(server, ids_file, tmp_path, sweep=True, p99_ms=100, num_runs=1))
    report = read(tmp_path)
    assert report["status"] == "complete"
    assert 20 <= report["knee"]["rate_per_s"] <= 110
    assert not report["knee"]["is_client_limited"]
    assert report["knee"]["reason"] == "higher rates miss a 99th percentile of 100 ms"
    assert any(point["latency_ms"]["p99"]["pooled"] > 100 for point in report["points"])
