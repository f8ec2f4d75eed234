"""The server as processes: what it loads, how it starts or does not, how it ends, what it survives."""

import os
import re
import signal
import socket
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from damaged_versions import CHANGED_FILES, WRONG_PARTS, publish
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running_server import DEADLINE_S, RE4, RunningServer, open_files, raw_call, serve_and_fail, wait_until
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.publishing.retention import prune
from re4.common.errors import UsageError
from re4.serving.cli import serve

on_both_transports = pytest.mark.transports("native", "grpcio")


@on_both_transports
def test_the_running_server_never_loads_what_belongs_offline(tmp_path: Path, transport: str) -> None:
    """Python itself lists what every process of the server imports: parent, check and worker."""
    SmallVersion(seed=1).publish(tmp_path)
    env = {"PYTHONPROFILEIMPORTTIME": "1"}
    with (
        RunningServer(tmp_path, "--poll-interval-s", "0.02", env=env) as running,
        RetrievalClient(running.address) as client,
    ):
        client.retrieve(["item-1-é"], return_interests=True)
        client.encode(["item-1-é"])
        seen = running.num_lines
        name = SmallVersion(seed=2).publish(tmp_path)
        running.wait_for(f"worker 1: serving {name}", after=seen)
        client.retrieve(["item-1-é"])
    modules = {
        line.rpartition("|")[2].strip()
        for line in running.log.splitlines()
        if line.startswith("import time:")
    }
    packages = {".".join(name.split(".")[: 1 + name.startswith("re4.")]) for name in modules}
    assert {"re4.serving", "re4.bundle", "re4.protos", "faiss", "onnxruntime"} <= packages
    assert ("grpc" in packages) == (transport == "grpcio")
    offline = {
        "torch",
        "re4.training",
        "re4.exporting",
        "re4.benchmarks",
        "polars",
        "onnx",
        "pandas",
        "scipy",
    }
    assert not packages & offline


@on_both_transports
def test_workers_keep_to_one_thread_and_send_no_telemetry(server: RunningServer) -> None:
    (worker,) = server.workers()
    environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    assert {b"OMP_NUM_THREADS=1", b"OPENBLAS_NUM_THREADS=1"} <= set(environment)
    assert not [name for name in open_files(worker) if "onnxruntime.db" in name]


@on_both_transports
def test_the_parent_loads_no_parser(server: RunningServer) -> None:
    """So that nothing in a bundle can reach the process that keeps the others running."""
    mapped = Path(f"/proc/{server.pid}/maps").read_text()
    (worker,) = server.workers()
    assert "faiss" not in mapped
    assert "onnxruntime" not in mapped
    assert "faiss" in Path(f"/proc/{worker}/maps").read_text()


@on_both_transports
def test_a_stop_exits_with_0_leaves_no_process_and_frees_the_port(bundles: Path) -> None:
    address = "127.0.0.1:0"
    for number in (signal.SIGTERM, signal.SIGINT):
        with (
            RunningServer(bundles, "--address", address) as running,
            RetrievalClient(running.address) as client,
        ):
            client.info()
            workers = running.workers()
            running.signal(number)  # the server closes the connection: its side lingers for a while
            assert running.wait() == 0
        assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
        assert "stopped" in running.log
        assert "Traceback" not in running.log
        address = running.address


def test_a_killed_worker_is_replaced_and_answers_from_the_last_good_version(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    good = SmallVersion(seed=1).publish(bundles)
    with RunningServer(bundles, "--poll-interval-s", "0.02") as running:
        failed = publish(bundles, SmallVersion(seed=2), CHANGED_FILES["truncated"][0])
        running.wait_for(f"version {failed} refused")
        (worker,) = running.workers()
        seen = running.num_lines
        os.kill(worker, signal.SIGKILL)
        running.wait_for(
            rf"worker 1 \(pid {worker}\) ended with signal SIGKILL; starting another", after=seen
        )
        running.wait_for(f"worker 1: serving {good}", after=seen)
        with RetrievalClient(running.address) as client:
            assert client.retrieve(["item-1-é"], 5).version == good


def test_a_signal_without_a_name_kills_a_worker_or_a_check_but_not_the_server(tmp_path: Path) -> None:
    """The first check of the second version kills itself; the next one, by itself, passes."""
    bundles = tmp_path / "bundles"
    SmallVersion(seed=1).publish(bundles)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, sys\nif 're4.serving.versions.version_check' in sys.orig_argv:\n"
        f"    kill = pathlib.Path({str(tmp_path / 'kill')!r})\n"
        "    if kill.exists():\n        kill.unlink()\n        os.kill(os.getpid(), 35)\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    with RunningServer(bundles, "--poll-interval-s", "0.02", env=env) as running:
        (worker,) = running.workers()
        seen = running.num_lines
        os.kill(worker, 35)
        running.wait_for(rf"worker 1 \(pid {worker}\) ended with signal 35; starting another", after=seen)
        running.wait_for("worker 1: serving", after=seen)
        (tmp_path / "kill").touch()
        name = SmallVersion(seed=2).publish(bundles)
        running.wait_for(f"version {name} refused, the old one stays live: .* signal 35", after=seen)
        running.wait_for(f"worker 1: serving {name}", after=seen)
        with RetrievalClient(running.address) as client:
            assert client.info()["failure"] == ""


def test_a_worker_that_could_not_load_a_version_loads_it_later(tmp_path: Path) -> None:
    """One of two workers runs short of files once, after the version passed its check."""
    bundles = tmp_path / "bundles"
    SmallVersion(seed=1).publish(bundles)
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, sys\nif 're4.serving.processes.worker' in sys.orig_argv:\n"
        "    from re4.serving.versions import snapshot\n    load = snapshot.load_snapshot\n"
        f"    fail = pathlib.Path({str(tmp_path / 'fail')!r})\n"
        "    def load_or_fail(*args, **kwargs):\n        try:\n            fail.unlink()\n"
        "        except FileNotFoundError:\n            return load(*args, **kwargs)\n"
        "        raise OSError(24, 'Too many open files')\n    snapshot.load_snapshot = load_or_fail\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    with RunningServer(bundles, "--poll-interval-s", "0.02", "--num-processes", "2", env=env) as running:
        (tmp_path / "fail").touch()
        seen = running.num_lines
        name = SmallVersion(seed=2).publish(bundles)
        running.wait_for(r"worker \d keeps its version: .*Too many open files", after=seen)
        for number in (1, 2):
            running.wait_for(f"worker {number}: serving {name}", after=seen)


def test_a_worker_that_keeps_dying_is_started_ever_more_slowly(bundles: Path) -> None:
    with RunningServer(bundles) as running:
        for restart in range(3):
            (worker,) = running.workers()
            seen = running.num_lines
            os.kill(worker, signal.SIGKILL)
            running.wait_for("worker 1: serving", after=seen)
            waited = [line for line in running.log.splitlines()[seen:] if "waiting" in line]
            assert len(waited) == (restart > 0)


@on_both_transports
def test_the_threads_of_a_worker_are_said(server: RunningServer) -> None:
    found = server.wait_for(r"threads of a worker: onnxruntime 1, openmp 1, blas 1, process (\d+)")
    (worker,) = server.workers()
    assert 1 <= int(found.group(1)) <= len(list(Path(f"/proc/{worker}/task").iterdir())) + 4


@on_both_transports
def test_the_port_is_open_and_not_serving_until_the_version_is_warm(bundles: Path, tmp_path: Path) -> None:
    """The process that checks the version waits at its very beginning, until the test opens a pipe."""
    held = tmp_path / "held"
    os.mkfifo(held)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 're4.serving.versions.version_check' in sys.orig_argv:\n"
        f"    open({str(held)!r}).close()\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    running = RunningServer(bundles, "--num-processes", "2", env={"PYTHONPATH": path})
    try:
        address = "127.0.0.1:" + running.wait_for(r"port (\d+) is open, NOT_SERVING").group(1)
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", "re4.v1.Retrieval"):
                answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_S)
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            code, details = raw_call(channel, "Retrieve", b"")
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "no version is loaded yet" in details
            watching = health.Watch(health_pb2.HealthCheckRequest(service="re4.v1.Retrieval"))
            assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
            held.open("w").close()
            assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
            watching.cancel()
            assert raw_call(channel, "Retrieve", b"")[0] is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        running.__exit__()
    assert running.wait() == 0


def test_what_is_served_survives_newer_versions_that_are_refused_and_their_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pruning otherwise keeps a version that was published less than a second before the live one.
    monkeypatch.setattr("re4.bundle.publishing.retention._SWAP", timedelta(0))
    bundles = tmp_path / "bundles"
    good = SmallVersion(seed=1).publish(bundles)
    with RunningServer(bundles, "--num-processes", "1", "--poll-interval-s", "0.02") as running:
        failed = publish(bundles, WRONG_PARTS["index of another catalogue"][0]())
        running.wait_for(f"version {failed} refused")
        assert prune(bundles, num_kept=0) == []
        (worker,) = running.workers()
        seen = running.num_lines
        os.kill(worker, signal.SIGKILL)
        running.wait_for(f"worker 1: serving {good}", after=seen)
    assert prune(bundles, num_kept=0) == [good]


def test_all_processes_end_with_a_parent_that_was_killed(bundles: Path) -> None:
    """One worker is stopped, and the process that measures recall sleeps."""
    options = ("--metrics-address", "127.0.0.1:0", "--recall-sample", "1", "--recall-cpu-share", "0.0001")
    with RunningServer(bundles, "--num-processes", "2", *options) as running:
        workers = running.workers()
        assert len(workers) == 2
        with RetrievalClient(running.address) as client:
            client.retrieve(["item-1-é"], 5)
        wait_until(lambda: running.children(b"recall_process"))
        os.kill(min(workers), signal.SIGSTOP)
        running.signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        # The log ended, so every process that held it has.
        assert running.has_ended


def test_a_check_ends_with_a_parent_that_was_killed(bundles: Path, tmp_path: Path) -> None:
    """The check is held up in the middle of its work, where it would stay for ever."""
    held = tmp_path / "held"
    os.mkfifo(held)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 're4.serving.versions.version_check' in sys.orig_argv:\n"
        "    from re4.bundle import verify\n"
        f"    verify.verify_version = lambda *_, **how: open({str(held)!r})\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    running = RunningServer(bundles, env=env)
    try:
        running.wait_for("is open, NOT_SERVING")
        running.signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert running.has_ended  # the log has, and with it all who held it
    finally:
        held.unlink()


def test_a_damaged_first_version_ends_the_start(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    publish(bundles, SmallVersion(), CHANGED_FILES["a flipped bit"][0])
    code, words = serve_and_fail(bundles)
    assert code == 1
    assert "encoder.onnx: SHA-256" in words


def test_a_directory_without_a_version_ends_the_start(tmp_path: Path) -> None:
    code, words = serve_and_fail(tmp_path)
    assert code == 1
    assert "no version was published here yet. Publish one: re4 export" in words


@pytest.mark.transports("grpcio")
def test_a_worker_that_cannot_start_ends_the_start(bundles: Path, tmp_path: Path) -> None:
    """The check runs well; then a worker finds a grpc that cannot be imported."""
    (tmp_path / "grpc.py").write_text("raise ImportError('no gRPC here')\n")
    command = [*RE4, "serve", "--bundles", str(bundles), "--address", "127.0.0.1:0"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=env, check=False)
    assert done.returncode == 1
    assert re.search(r"worker \d ended with exit code 1 before it could serve", " ".join(done.stderr.split()))


@on_both_transports
def test_a_port_that_is_taken_ends_the_start(bundles: Path, server: RunningServer) -> None:
    """By another server as well, whose port the kernel would share."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        for address in (taken, server.address):
            code, words = serve_and_fail(bundles, "--address", address)
            assert code == 1
            assert f"cannot listen on {address}: Address already in use" in words


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"address": "0.0.0.0:0"}, "can be reached from other machines"),
        ({"address": "127.0.0.1"}, "expected HOST:PORT"),
        ({"address": "127.0.0.1:70000"}, "with a port from 0 (the system chooses) to 65535"),
        ({"address": "no.such.host.invalid:1"}, "the host 'no.such.host.invalid' is not known here"),
        ({"merge_policy": "average"}, "no such policy; there is max-score"),
        ({"num_processes": 0}, "--num-processes is 0; the smallest value is 1"),
        ({"max_num_candidates": 0}, "--max-num-candidates is 0; the smallest value is 1"),
        ({"poll_interval_s": 0}, "--poll-interval-s is 0; the smallest value is 0.001"),
        ({"max_batch_delay_ms": 1.5}, "--max-batch-delay-ms is 1.5; the largest value is 1"),
        ({"max_queue_ms": -1}, "--max-queue-ms is -1; the smallest value is 0"),
        ({"grace_s": -1}, "--grace-s is -1; the smallest value is 0"),
    ],
)
def test_wrong_words_are_refused(options: dict[str, Any], text: str, bundles: Path) -> None:
    with pytest.raises(UsageError) as refused:
        serve(bundles=bundles, **options)
    assert text in str(refused.value)


def test_wrong_words_exit_with_2(bundles: Path) -> None:
    code, words = serve_and_fail(bundles, "--address", "0.0.0.0:0")
    assert code == 2
    assert "add --insecure" in words


def test_an_address_that_others_reach_needs_a_word(bundles: Path) -> None:
    with RunningServer(bundles, "--address", "0.0.0.0:0", "--insecure") as running:
        assert "reflection=False" in running.log
        port = running.address.rpartition(":")[2]
        with RetrievalClient(f"127.0.0.1:{port}") as client:
            client.info()


def test_the_help_loads_nothing_heavy() -> None:
    env = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run([*RE4, "serve", "--help"], capture_output=True, text=True, env=env, check=True)
    assert "--bundles" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "re4.serving.settings" in imported
    assert not imported & {"torch", "faiss", "onnxruntime", "grpc", "numpy"}
