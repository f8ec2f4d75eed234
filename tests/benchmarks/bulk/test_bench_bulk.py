"""`re4 bench bulk`: the report of what was measured, and the job that it measures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from small_bundles import SmallVersion

from re4.benchmarks.bulk import benchmark
from re4.benchmarks.bulk.options import BulkOptions


def test_the_cost_of_a_user_is_separated_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user costs 160 µs and a start 2 s of the job; the pipeline takes 144 µs, the server 240."""
    version = SmallVersion()
    version.publish(tmp_path / "bundles")
    num_users: list[int] = []

    @contextmanager
    def measured(figures: dict[str, Any]) -> Iterator[Any]:
        yield SimpleNamespace(measure=lambda seconds: figures)

    @contextmanager
    def server(*_: Any, **options: Any) -> Iterator[tuple[str, int]]:
        yield "", 0

    def job(options: BulkOptions, users: Path, work: Path) -> float:
        num_users.append(len(pl.read_parquet(users)))
        return 2.0 + 160e-6 * num_users[-1]

    histories = SimpleNamespace(payloads=lambda **_: [])
    monkeypatch.setattr(benchmark, "running_server", server)
    monkeypatch.setattr(benchmark, "server_info", lambda address: {"version": "v", "num_items": 60})
    monkeypatch.setattr(benchmark, "choose_histories", lambda info, **_: histories)
    monkeypatch.setattr(benchmark, "pipeline_process", lambda *_, **__: measured({"batched_cpu_us": 144.0}))
    monkeypatch.setattr(benchmark, "re4_server", lambda *_: measured({"batch": {"cpu_us": 240.0}}))
    monkeypatch.setattr(benchmark, "_bulk_cpu_s", job)
    payload = benchmark.retrieval_pb2.RetrieveRequest(
        history=benchmark.retrieval_pb2.ItemIds(strings=["item-1-é"]), num_candidates=5
    )
    histories.payloads = lambda **_: [payload.SerializeToString()]
    report = benchmark.run(
        BulkOptions(bundles=tmp_path / "bundles", num_users=100, num_rounds=2, out=tmp_path / "out")
    )
    assert num_users == [100, 400] * 2
    assert report["bulk"]["cpu_us"] == pytest.approx(160)
    assert report["bulk"]["rate_of_pipeline"] == pytest.approx(0.9)
    assert report["server"]["rate_of_pipeline"] == pytest.approx(0.6)
    assert report["bulk"]["start_cpu_s"] == pytest.approx(2.0)
    assert (tmp_path / "out" / benchmark.JSON_FILE).exists()


def test_the_job_is_one_that_runs(tmp_path: Path) -> None:
    SmallVersion().publish(tmp_path / "bundles")
    users = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": [1, 2], "history": [["item-1-é"], ["item-2-é"]]}).write_parquet(users)
    options = BulkOptions(bundles=tmp_path / "bundles", num_users=100, num_candidates=5)
    assert benchmark._bulk_cpu_s(options, users, tmp_path) > 0
    assert not (tmp_path / "out").exists()
