"""`re4 bench peers`: ours and others under the same loads, and what the report says of who is ahead."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_bundles import MAX_HISTORY, SmallVersion

from re4.benchmarks.common import cpu_stability, peer_environments
from re4.benchmarks.load_generator import transport
from re4.benchmarks.load_generator.http_transport import HttpTransport
from re4.benchmarks.load_generator.load import Timing
from re4.benchmarks.load_generator.transport import call_all
from re4.benchmarks.peers import benchmark, kserve, measure, peer_process
from re4.benchmarks.peers.benchmark import run
from re4.benchmarks.peers.comparison import compare
from re4.benchmarks.peers.markdown import headline
from re4.benchmarks.peers.measure import exact_answers
from re4.benchmarks.peers.options import PeersOptions
from re4.benchmarks.peers.systems import FastApi, Re4, Triton, Workload
from re4.benchmarks.serve import runner, sweep
from re4.benchmarks.serve.runner import LoadPoint, LoadRunner, RepeatRun
from re4.common.errors import ServerError, UsageError

WEB_SERVER = """
import argparse, http.server, json
parser = argparse.ArgumentParser()
parser.add_argument("version")
parser.add_argument("--setting")
parser.add_argument("--port", type=int)
words = parser.parse_args()
if words.setting == "broken":
    raise SystemExit("no such setting")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"ids": question["history"][:1] * question["num_candidates"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", words.port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def small() -> SmallVersion:
    return SmallVersion()


@pytest.fixture(scope="module")
def folder(small: SmallVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles, and the data to ask with."""
    folder = tmp_path_factory.mktemp("peers")
    small.publish(folder / "bundles")
    (folder / "data").mkdir()
    rows = np.arange(24, dtype=np.int32)
    np.save(folder / "data" / "test.items.npy", rows)
    np.save(folder / "data" / "test.offsets.npy", np.arange(0, 25, 4))
    np.save(folder / "data" / "test.num_history.npy", np.full(6, 4, np.int32))
    pl.DataFrame({"item_id": small.ids}).write_parquet(folder / "data" / "items.parquet")
    return folder


def options(folder: Path, out: Path, **changes: Any) -> PeersOptions:
    defaults: dict[str, Any] = {
        "bundles": folder / "bundles",
        "data": folder / "data",
        "p99_ms": 500.0,
        "num_runs": 2,
        "warmup_s": 0.1,
        "duration_s": 0.3,
        "num_candidates": 5,
        "work": folder / "work",
        "out": out,
    }
    return PeersOptions(**(defaults | changes))


@pytest.fixture(scope="module", autouse=True)
def _quick(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_CEILING_TIMING", Timing(warmup_s=0.1, duration_s=0.3, deadline_s=9))
        patch.setattr(runner, "MIN_LAG_MS", 1000.0)  # a busy machine is late by itself
        patch.setattr(sweep, "_NUM_HALVINGS", 0)
        patch.setattr(benchmark, "_PIPELINE_S", 0.1)
        patch.setattr(benchmark, "_PIPELINE_WARMUP_S", 0.1)
        patch.setattr(cpu_stability, "_SECONDS", 0.1)
        patch.setattr(measure, "_MAX_OTHER_CORES", 99.0)  # tests share their machine
        patch.setattr(peer_environments, "BASELINES", folder / "peers")
        yield


@pytest.fixture(scope="module")
def swept(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Ours, swept once for all tests: the folder of the report, not to be changed, and the report."""
    out = folder / "swept"
    return out, run(options(folder, out))


@pytest.fixture
def out(swept: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the folder, to measure more into."""
    return shutil.copytree(swept[0], tmp_path / "out")


def test_ours_is_measured_and_peers_that_cannot_be_had_are_skipped_with_the_reason(
    folder: Path, swept: tuple[Path, dict[str, Any]], out: Path
) -> None:
    _, report = swept
    assert report["status"] == "complete"
    (ours,) = report["systems"]
    assert ours["recall"] == {"mean": 1.0, "min": 1.0, "num_requests": 6}
    purposes = [point["purpose"] for point in ours["points"]]
    assert purposes[:3] == ["lone caller", "saturation", "search"]
    assert purposes[-1] == "measured"
    assert ours["points"][-1]["num_runs"] == 2
    assert ours["points"][-1]["stages_us"]["search"]["p50"] > 0
    assert {part["system"] for part in report["skipped"]} == {"triton", "two-hop", "fastapi"}
    assert all("make peers" in part["skipped"] for part in report["skipped"])
    text = (out / "report.md").read_text()
    assert "NVIDIA Triton (pytriton): no environment at" in text
    assert "requests/s** within a 99th percentile of 500 ms" in text
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    # The folder keeps what was measured, on these terms only.
    again = run(options(folder, out, systems=""))
    assert again["systems"] == json.loads(json.dumps(report["systems"]))
    with pytest.raises(UsageError, match=r"on other terms \(num_candidates\)"):
        run(options(folder, out, systems="", num_candidates=6))


def test_what_is_prepared_serves_any_timing_but_no_other_recall(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = part("re4", "default", per_s=300, lone_ms=2, mib=100)
    monkeypatch.setattr(benchmark._Comparison, "_measure_pipeline", lambda _: None)
    monkeypatch.setattr(benchmark, "measure", lambda *_: found)
    monkeypatch.setattr(benchmark, "draw", lambda report, path: path.write_bytes(b""))
    monkeypatch.setattr(benchmark, "render_markdown", lambda report: "")
    out = tmp_path / "out"
    assert run(options(folder, out, systems="re4", prepare_only=True))["systems"] == []
    monkeypatch.setattr(benchmark, "choose_effort", None)  # what was prepared is not prepared again
    assert len(run(options(folder, out, systems="re4", duration_s=0.2))["systems"]) == 1
    with pytest.raises(UsageError, match=r"on other terms \(min_recall\)"):
        run(options(folder, out, systems="re4", prepare_only=True, recall=0.99))


class Twin(Re4):
    """A second server of the same kind, to take turns with."""

    name, title = "twin", "Twin"


def test_systems_that_take_turns(
    folder: Path, swept: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SYSTEMS", (Re4(), Twin(), Triton()))
    monkeypatch.setattr("sys.argv", ["re4", "--rounds", "2"])
    out = tmp_path / "out"
    report = run(options(folder, out, rounds=2))
    assert report["status"] == "complete"
    assert report["systems"] == []
    ours, twin = report["in_turns"]["settings"]
    for one in (ours, twin):
        assert [point["purpose"] for point in one["points"]] == ["saturation", "lone caller"]
        assert [point["num_runs"] for point in one["points"]] == [2, 2]
    assert ours["ours_is_times"] is None
    ratio = twin["ours_is_times"]["saturation"]["answers_per_s"]
    pairs = [
        mine["achieved_per_s"] / its["achieved_per_s"]
        for mine, its in zip(ours["points"][0]["runs"], twin["points"][0]["runs"], strict=True)
    ]
    assert ratio["mean"] == pytest.approx(sum(pairs) / 2)
    assert ratio["low"] <= min(pairs) <= max(pairs) <= ratio["high"]
    text = (out / "report.md").read_text()
    assert f"Saturated, interleaved, Re4 Retrieval answers **{ratio['mean']:.1f} ×** Twin (default)." in text
    assert "2 rounds with all systems up" in text
    assert text.endswith("```\nre4 --rounds 2\n```\n")
    # Sweeps come beside it, and keep it.
    shutil.copy(swept[0] / "parts" / "re4-default.json", out / "parts")
    both = run(options(folder, out, systems=""))
    assert both["in_turns"] == json.loads(json.dumps(report["in_turns"]))
    assert len(both["systems"]) == 1


def test_turns_that_are_interrupted_are_marked(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = LoadRunner.run_once

    def run_once(self: LoadRunner, point: LoadPoint, **how: Any) -> RepeatRun:
        if len(self.points[0].runs) == 1 and point is self.points[0]:
            raise KeyboardInterrupt
        return once(self, point, **how)

    monkeypatch.setattr(LoadRunner, "run_once", run_once)
    report = run(options(folder, out, systems="re4", rounds=3))
    assert (report["status"], report["status_reason"]) == ("partial", "interrupted")
    (ours,) = report["in_turns"]["settings"]
    assert [point["num_runs"] for point in ours["points"]] == [1, 1]


def test_an_interrupted_comparison_is_marked(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "find_knee", interrupted)
    report = run(options(folder, out, systems="re4"))
    assert (report["status"], report["status_reason"]) == ("partial", "Re4 Retrieval, default: interrupted")
    assert [point["purpose"] for point in report["systems"][0]["points"]] == ["lone caller", "saturation"]
    assert "**PARTIAL REPORT: Re4 Retrieval" in (out / "report.md").read_text()


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "web_server.py").write_text(WEB_SERVER)
    monkeypatch.setattr(peer_process, "SCRIPTS", tmp_path)
    monkeypatch.setattr(peer_process, "python_of", lambda environment: Path(sys.executable))


@pytest.fixture
def workload(folder: Path, tmp_path: Path) -> Workload:
    histories = benchmark.real_histories(folder / "data", max_length=MAX_HISTORY, seed=0)
    version = benchmark.live_version(folder / "bundles")
    return Workload(version=version, histories=histories, num_candidates=3, work=tmp_path)


@pytest.mark.usefixtures("scripts")
def test_a_peer_s_script_runs_until_the_block_ends(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = FastApi()
    with system.running(workload, "loop", 0) as (address, _):
        replies = call_all(system.transport, address, system.payloads(workload)[:2])
        assert [system.item_ids(reply) for reply in replies] == [
            ids[:1] * 3 for ids in workload.histories.ids[:2]
        ]
    monkeypatch.setattr(transport, "CALL_TIMEOUT_S", 0.3)
    with pytest.raises(ServerError, match="does not answer"):
        call_all(HttpTransport(path="/retrieve"), address, [b"{}"])


@pytest.mark.usefixtures("scripts")
def test_a_peer_that_ends_at_its_start_says_why(workload: Workload) -> None:
    system = FastApi()
    with (
        pytest.raises(ServerError, match="ended before it answered:\nno such setting"),
        system.running(workload, "broken", 0),
    ):
        pass


def test_recall_is_judged_by_exact_search(workload: Workload, small: SmallVersion) -> None:
    exact = exact_answers(workload)
    rows = [[small.ids.index(id_) for id_ in ids] for ids in workload.histories.ids]
    best = [[small.ids[row] for row in np.argsort(-small.scores(history))[:4]] for history in rows]
    assert exact.recall([ids[:3] for ids in best])["mean"] == 1.0
    found = exact.recall([[*ids[:2], ids[3]] if n else [ids[0]] * 3 for n, ids in enumerate(best)])
    assert found == {
        "mean": pytest.approx((1 / 3 + 5 * 2 / 3) / 6),
        "min": pytest.approx(1 / 3),
        "num_requests": 6,
    }


def test_triton_s_messages_have_the_fields_of_its_protocol() -> None:
    assert kserve.request("m", "h", [b"ab", b""]) == (
        b"\x0a\x01m"  # 1: model_name
        b"\x2a\x0e\x0a\x01h\x12\x05BYTES\x1a\x02\x01\x02"  # 5: inputs {1: name, 2: datatype, 3: shape}
        b"\x3a\x0a\x02\x00\x00\x00ab\x00\x00\x00\x00"  # 7: raw_input_contents
    )
    reply = (
        b"\x0a\x01m\x2a\x08\x0a\x06scores\x2a\x05\x0a\x03ids"  # 1: model_name, 5: outputs
        b"\x32\x04\x00\x00\x00\x00\x32\x0a\x02\x00\x00\x00ab\x00\x00\x00\x00"  # 6: raw_output_contents
    )
    assert kserve.bytes_of(reply, "ids") == [b"ab", b""]


def part(system: str, setting: str, *, per_s: float | None, lone_ms: float, mib: int) -> dict[str, Any]:
    def point(purpose: str, **changes: Any) -> dict[str, Any]:
        latency = {name: {"pooled": lone_ms} for name in ("p50", "p99")}
        usage = {"max_memory_bytes": mib << 20, "mean_cores": 1.0}
        achieved = {"mean": per_s, "low": None, "high": None}
        return {
            "purpose": purpose,
            "latency_ms": latency,
            "server_usage": usage,
            "achieved_per_s": achieved,
        } | changes

    points = [point("lone caller"), point("saturation"), point("measured", rate_per_s=per_s)]
    return {
        "system": system,
        "title": system.title(),
        "setting": setting,
        "recall": {"mean": 0.96},
        "knee": {"rate_per_s": per_s, "is_client_limited": False, "reason": ""},
        "points": points,
    }


def test_the_first_paragraph_says_who_is_ahead_and_where_a_peer_is_ahead_of_us() -> None:
    weak = part("two-hop", "all", per_s=900, lone_ms=1, mib=1)
    weak["recall"] = {"mean": 0.5}
    report = {
        "terms": {"min_recall": 0.95, "p99_ms": 20.0, "num_candidates": 100},
        "bundle": {"items": {"num_items": 1000}},
        "in_process": {"per_s": 400.0, "batch_size": 64},
        "systems": [
            part("re4", "default", per_s=300, lone_ms=2, mib=100),
            part("triton", "latency", per_s=60, lone_ms=1.5, mib=200),
            part("triton", "throughput", per_s=100, lone_ms=4, mib=200),
            weak,
        ],
    }
    report["comparison"] = compare(report)
    text = headline(report)
    assert "sustains **300 requests/s** within a 99th percentile of 20 ms" in text
    assert "**3.0 ×** Triton (throughput: 100/s)" in text
    assert "75% of what encoding" in text
    assert text.endswith("**Ahead of us:** Triton (latency) answers a lone client in 1.50 ms, ours 2.00.")
    assert "Two-Hop" not in text  # not at this recall
    report["systems"][1] = part("triton", "latency", per_s=600, lone_ms=9, mib=200)
    report["comparison"] = compare(report)
    assert "**Ahead of us:** Triton (latency) sustains 600/s, ours 300/s" in headline(report)
