"""`re4 bench serve` as a person meets it: reports, refusals, and what is left when something goes wrong."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import polars as pl
import pytest
from known_server import DEADLINE_S, KnownServer, info, reply
from running_server import RE4
from serve_reports import options, read
from small_bundles import SmallVersion

from re4.benchmarks.load_generator.load import Timing
from re4.benchmarks.serve import runner
from re4.benchmarks.serve.benchmark import run
from re4.benchmarks.serve.cli import serve
from re4.cli import main
from re4.common.errors import DataError, Re4Error, UsageError
from re4.protos.v1 import retrieval_pb2 as pb


@pytest.fixture
def real_ceiling(_known_ceiling: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the client against a null server, but shortly."""
    monkeypatch.setattr(runner, "_CEILING_TIMING", Timing(warmup_s=0.1, duration_s=0.4, deadline_s=10))
    monkeypatch.setattr("re4.benchmarks.serve.benchmark.measure_ceiling", runner.measure_ceiling)


@pytest.mark.usefixtures("real_ceiling")
def test_a_report_has_every_figure_as_json_text_and_picture(tmp_path: Path, ids_file: Path) -> None:
    out = tmp_path / "out"
    with KnownServer() as server:
        returned = run(options(server, ids_file, out, server_pid=os.getpid()))
    report = read(out)
    assert report == json.loads(json.dumps(returned))
    assert report["status"] == "complete"
    assert report["server"]["info"]["model"] == "known"
    assert report["client"]["ceiling_per_s"] > report["client"]["max_rate_per_s"] > 50
    assert report["machine"]["cpu_flags"]
    assert "grpcio" in report["machine"]["packages"]
    (point,) = report["points"]
    assert (point["loop"], point["num_runs"], point["num_calls"]) == ("open", 3, 90)
    assert point["offered_per_s"]["mean"] == pytest.approx(50)
    for name in ("p50", "p90", "p99", "p99.9"):
        figure = point["latency_ms"][name]
        assert 0 <= figure["low"] <= figure["mean"] <= figure["high"]
        assert figure["pooled"] > 0
    assert point["batch_size"]["mean"] == pytest.approx(3, rel=0.01)
    assert point["stages_us"]["search"]["p50"] == 40
    assert point["server_usage"]["num_processes"] >= 1
    assert point["client_usage"]["max_memory_bytes"] > 0
    text = (out / "report.md").read_text()
    assert report["command"] in text
    assert "REPORT" not in text
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_closed_loop_at_the_client_s_own_limit_is_marked(
    tmp_path: Path, ids_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("re4.benchmarks.serve.benchmark.measure_ceiling", lambda *_, **__: 10.0)
    with KnownServer() as server:
        run(options(server, ids_file, tmp_path, concurrency=2, num_runs=1))
    report = read(tmp_path)
    assert report["status"] == "client-limited"
    assert "over 80% of the 10/s" in report["status_reason"]


def test_a_closed_loop_says_so(tmp_path: Path, ids_file: Path) -> None:
    with KnownServer() as server:
        run(options(server, ids_file, tmp_path, concurrency=2, num_runs=1))
    assert read(tmp_path)["points"][0]["loop"] == "closed"
    assert "**Closed loop**" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("real_ceiling")
def test_a_rate_that_the_client_cannot_offer_is_refused(tmp_path: Path, ids_file: Path) -> None:
    with KnownServer() as server, pytest.raises(UsageError, match="does not measure itself"):
        run(options(server, ids_file, tmp_path / "out", rate=10_000_000))
    assert not (tmp_path / "out").exists()
    assert server.num_calls < 100  # a first look, and no load


def test_a_client_that_sent_late_marks_its_report(
    tmp_path: Path, ids_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MIN_LAG_MS", 0.0)
    monkeypatch.setattr(runner, "MAX_LAG_SHARE", 0.0)
    with KnownServer() as server:
        run(options(server, ids_file, tmp_path, num_runs=1))
    report = read(tmp_path)
    assert report["status"] == "client-limited"
    assert "ms late" in report["status_reason"]
    assert (tmp_path / "report.md").read_text().splitlines()[2].startswith("**CLIENT-LIMITED REPORT")


def test_a_server_replaced_between_runs_leaves_a_partial_report(tmp_path: Path, ids_file: Path) -> None:
    with KnownServer(info=lambda number: info(server_version="1" if number < 2 else "2")) as server:
        run(options(server, ids_file, tmp_path))
    report = read(tmp_path)
    assert report["status"] == "partial"
    assert report["status_reason"] == "the server changed in the middle: server_version from 1 to 2"
    assert report["points"][0]["num_runs"] == 2


def test_a_version_published_in_the_middle_leaves_a_partial_report(tmp_path: Path, ids_file: Path) -> None:
    with KnownServer(answer=lambda number: reply() if number < 60 else reply("other")) as server:
        run(options(server, ids_file, tmp_path))
    report = read(tmp_path)
    assert report["status"] == "partial"
    assert "version changed in the middle" in report["status_reason"]
    assert report["points"][0]["num_answered"] > 0
    assert "PARTIAL" in (tmp_path / "report.md").read_text()


def test_a_server_that_dies_leaves_a_partial_report(tmp_path: Path, ids_file: Path) -> None:
    async def die(number: int) -> None:
        if number == 60:
            server._over.set()
            await asyncio.sleep(60)

    with KnownServer(die) as server:
        run(options(server, ids_file, tmp_path, duration_s=30))
    report = read(tmp_path)
    assert report["status"] == "partial"
    assert "the server cannot be reached any more" in report["status_reason"]
    assert report["points"][0]["num_answered"] > 0
    assert report["points"][0]["failures"]["UNAVAILABLE"] > 0


def test_a_sweep_that_reaches_the_client_s_end_does_not_call_it_the_server_s(
    tmp_path: Path, ids_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("re4.benchmarks.serve.benchmark.measure_ceiling", lambda *_, **__: 100.0)
    with KnownServer() as server:
        run(options(server, ids_file, tmp_path, sweep=True, p99_ms=3000, num_runs=1))
    report = read(tmp_path)
    assert report["status"] == "client-limited"
    assert report["knee"]["rate_per_s"] == 80
    assert "cannot offer more than 80/s" in report["status_reason"]


def test_a_server_that_refuses_the_requests_is_said_at_once(tmp_path: Path, ids_file: Path) -> None:
    with (
        KnownServer(status=lambda number: grpc.StatusCode.INVALID_ARGUMENT) as server,
        pytest.raises(Re4Error, match="INVALID_ARGUMENT: on purpose"),
    ):
        run(options(server, ids_file, tmp_path / "out"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name what to measure"),
        ({"rate": 10.0, "concurrency": 2}, "closed loop"),
        ({"rate": 0.0}, "--rate is 0.0; the smallest value"),
        ({"rate": 10.0, "num_runs": 0}, "--num-runs is 0; the smallest value is 1"),
        ({"rate": 10.0, "arrivals": "bursts"}, "choose one of poisson, constant"),
        ({"rate": 10.0}, "--address HOST:PORT"),
        ({"sweep": True, "against_address": "127.0.0.1:1"}, "with --rate or --concurrency only"),
    ],
)
def test_wrong_words_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        serve(**given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_ids_there_is_nothing_to_ask(tmp_path: Path) -> None:
    with KnownServer() as server, pytest.raises(UsageError, match="--data DIR"):
        run(options(server, None, tmp_path / "out"))


def test_what_is_no_data_set_is_named(tmp_path: Path) -> None:
    with KnownServer() as server, pytest.raises(DataError, match="not a prepared data set"):
        run(options(server, None, tmp_path / "out", data=tmp_path))


def test_ctrl_c_leaves_a_partial_report(tmp_path: Path, ids_file: Path) -> None:
    out = tmp_path / "out"
    with KnownServer() as server:
        words = ("--rate", "50", "--ids", str(ids_file), "--duration-s", "60", "--warmup-s", "0")
        process = subprocess.Popen(
            [*RE4, "bench", "serve", "--address", server.address, *words, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "run 1 of 3" in line:
                break
        server.wait_for_calls(60)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "partial report" in errors
    assert "interrupted" in errors
    report = read(out)
    assert (report["status"], report["status_reason"]) == ("partial", "interrupted")
    assert report["points"][0]["num_answered"] > 0


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command in this process: its exit code, standard output and standard error."""

    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["re4", "bench", "serve", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_a_wrong_address_is_said_in_words(
    tmp_path: Path, ids_file: Path, command: Callable[..., Any]
) -> None:
    words = ("--rate", "5", "--ids", str(ids_file), "--out", str(tmp_path / "o"))
    code, _, errors = command("--address", "127.0.0.1:1", *words)
    assert code == 1
    assert "UNAVAILABLE from 127.0.0.1:1" in errors
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("real_ceiling")
def test_bundles_start_a_server_and_give_recall(tmp_path: Path, command: Callable[..., Any]) -> None:
    SmallVersion().publish(tmp_path / "bundles")
    out = tmp_path / "out"
    words = ("--rate", "40", "--duration-s", "0.5", "--warmup-s", "0.2", "--out", str(out), "--json")
    asked = ("--num-candidates", "7", "--exclude-history")
    code, output, errors = command("--bundles", str(tmp_path / "bundles"), *words, *asked)
    report = read(out)
    # On a busy machine the client is late by itself, and must say so.
    assert (code, report["status"]) in {(0, "complete"), (1, "client-limited")}, errors
    assert json.loads(output) == report
    assert report["recall"]["mean"] == pytest.approx(1.0)
    assert report["recall"]["num_requests"] == 200
    assert report["bundle"]["items"]["num_items"] == 60
    assert report["points"][0]["failures"] == {}
    assert report["points"][0]["server_usage"]["num_processes"] >= 2
    assert "generated" in report["requests"]["source"]
    assert report["command"].startswith("re4 bench serve --bundles ")


def test_real_histories_are_a_data_set_s_test_users_newest_items(tmp_path: Path, ids_file: Path) -> None:
    pl.DataFrame({"item_id": [70, 71, 72, 73]}).write_parquet(tmp_path / "items.parquet")
    np.save(tmp_path / "test.items.npy", np.array([0, 1, 2, 3, 3, 2], np.int32))
    np.save(tmp_path / "test.offsets.npy", np.array([0, 4, 6], np.int64))
    np.save(tmp_path / "test.num_history.npy", np.array([3, 1], np.int32))
    asked: set[tuple[int, ...]] = set()

    class Listening(KnownServer):
        async def _retrieve(self, data: bytes, context: Any) -> bytes:
            asked.add(tuple(pb.RetrieveRequest.FromString(data).history.ints))
            return await super()._retrieve(data, context)

    with Listening(info=lambda number: info(max_history_length=2)) as server:
        run(options(server, None, tmp_path / "out", data=tmp_path, num_runs=1))
    assert asked == {(71, 72), (73,)}
