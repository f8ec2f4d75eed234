"""`re4 bench transports`: what it takes from h2load, and null servers of both transports."""

import os
from pathlib import Path

import grpc
import pytest
from running_server import DEADLINE_S

from re4.benchmarks.load_generator.null_server import null_server
from re4.benchmarks.load_generator.transport import METHOD
from re4.benchmarks.transports.benchmark import _measure, run
from re4.benchmarks.transports.options import TransportOptions
from re4.common.errors import Re4Error, UsageError
from re4.serving.settings import TransportName

H2LOAD = """#!/bin/sh
while [ $# -gt 1 ]; do
  [ "$1" = --log-file ] && printf '1\\t200\\t3000\\n2\\t200\\t1000\\n3\\t200\\t2000\\n' > "$2"
  shift
done
echo "finished in 1.00s, 1234.50 req/s, 1MB/s"
echo "requests: 3 total, 3 started, 3 done, 3 succeeded, FAILED failed, 0 errored, 0 timeout"
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "h2load"


def put(path: Path, num_failed: int) -> None:
    path.write_text(H2LOAD.replace("FAILED", str(num_failed)))
    path.chmod(0o755)


def test_the_figures_are_those_of_h2load(path: Path) -> None:
    put(path, 0)
    figures = _measure("127.0.0.1:1", os.getpid(), b"request", callers=64, seconds=0.1)
    assert figures.pop("cpu_us") >= 0
    assert figures == {"calls_per_s": 1234.5, "p50_ms": 2.0, "p99_ms": 3.0}


def test_a_load_with_failed_calls_has_no_figures(path: Path) -> None:
    put(path, 2)
    with pytest.raises(Re4Error, match=r"(?s)the load failed; h2load reports: .*2 failed"):
        _measure("127.0.0.1:1", os.getpid(), b"request", callers=1, seconds=0.1)


def test_without_h2load_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="apt install nghttp2-client"):
        run(TransportOptions(bundles=tmp_path))


@pytest.mark.parametrize("name", [TransportName.NATIVE, TransportName.GRPCIO])
def test_a_null_server_answers_on_each_transport(name: TransportName) -> None:
    with null_server(b"reply", name=name) as (address, _), grpc.insecure_channel(address) as channel:
        assert channel.unary_unary(METHOD)(b"request", timeout=DEADLINE_S) == b"reply"
