"""Settings of all tests: the same examples every time, one thread, no time limit."""

import logging
import os
import shutil
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Read by libraries when they are first imported, so it comes before everything else. Threads that share cores
# with another process wait for each other: the small work of a test takes several times as long by two.
os.environ.update({"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import pytest
from hypothesis import HealthCheck, settings
from milvus_process import MILVUS_SERVER

from re4.benchmarks.gpu_check import has_gpu
from re4.common import console

_LEFT_OUT = pytest.StashKey[int]()

_LONG_FILES = (
    "hardening/test_many_days.py",
    "hardening/test_fuzzed_requests.py",
    "hardening/test_any_order.py",
    "hardening/test_rebuild_accidents.py",
    "serving/test_milvus.py",
    "training/distributed/test_distributed.py",
    "re4/test_ray_engines.py",
    "test_end_to_end.py",
    "test_wheel.py",
    "re4/test_demo.py",
    "benchmarks/peers/test_bench_peers.py",
    "serving/processes/test_server_processes.py",
    "export/rebuild/test_rebuild_ends.py",
    "export/encoder/test_every_model_served.py",
    "serving/versions/test_version_check.py",
    "benchmarks/quality/test_bench_quality.py",
    "training/report/test_report.py",
    "training/kernels/test_precision.py",
    "training/test_api.py",
    "export/sources/test_read_memory.py",
    "export/rebuild/test_rebuild_run.py",
    "training/kernels/test_kernel_loader.py",
    "re4/test_histories_cli.py",
    "serving/api/test_item_calls.py",
)
"""Run first, so that no process is left with one of them at the end."""

_SHARED_SERVER = (
    *(
        f"serving/api/test_{name}.py"
        for name in ("bad_input", "batch_retrieve", "grpcurl", "request_options")
    ),
    *(f"serving/client/test_{name}.py" for name in ("async_client", "client", "retrieve_cli")),
    "serving/http/test_http_calls.py",
    "serving/observability/test_metrics_page.py",
    "serving/test_serving_cli.py",
    "serving/transports/test_transport_choice.py",
    "serving/transports/test_wire_format.py",
)
"""Use the servers of serving/conftest.py. One process of several runs all that have the same transport."""

for _name, _max_examples in (("short", 25), ("long", 400)):
    settings.register_profile(
        _name,
        derandomize=True,
        deadline=None,
        max_examples=_max_examples,
        suppress_health_check=[HealthCheck.too_slow],  # it measures time, and a machine may be busy
    )
settings.load_profile("short")

# A suite that a script started in the background ignores Ctrl-C, and so would commands that it interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_of_the_library() -> Iterator[None]:
    """Undo the changes of the log by a command that runs in the test's process, so that `caplog` works.

    Before the test as well: a fixture of its module may have run a command.
    """
    _reset_log()
    yield
    _reset_log()


def _reset_log() -> None:
    logger = logging.getLogger("re4")
    logger.handlers, logger.level, logger.propagate = [], logging.NOTSET, True
    console._draws_progress.set(False)


@pytest.fixture(scope="session", autouse=True)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """The transport of the servers under test; `mark.transports` runs a test on each that it names."""
    name: str = getattr(request, "param", "auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RE4_SERVE_TRANSPORT", name)
        yield name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("transports")
    if marker is not None and marker.args:
        metafunc.parametrize("transport", marker.args, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect GPU tests where there is no GPU, and report their number; put long files first."""
    here = Path(__file__).parent
    order = {here / name: place for place, name in enumerate(_LONG_FILES)}
    shared = {here / name for name in _SHARED_SERVER}
    items.sort(key=lambda item: order.get(item.path, len(order) + (item.path not in shared)))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not has_gpu():
        items[:] = [item for item in items if item not in on_gpu]
        config.hook.pytest_deselected(items=on_gpu)
        config.stash[_LEFT_OUT] = len(on_gpu)
        if hasattr(config, "workeroutput"):  # one of several processes: the parent prints the report
            config.workeroutput["left_out"] = len(on_gpu)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a process whole files, or the tests of all files that share the servers of one transport."""
    from xdist.scheduler import LoadFileScheduling

    class FileScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, test = nodeid.partition("::")
            if not path.endswith(_SHARED_SERVER):
                return path
            return next((name for name in ("native", "grpcio") if f"[{name}" in test), "auto")

    return FileScheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of several has ended, by itself or not; each of them collects, and leaves out, the same."""
    if "left_out" in getattr(node, "workeroutput", {}):
        node.config.stash[_LEFT_OUT] = node.workeroutput["left_out"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    num_left_out = config.stash.get(_LEFT_OUT, 0)
    if num_left_out:
        terminalreporter.write_line(f"{num_left_out} GPU tests were left out: there is no GPU here")
    if not (shutil.which("valkey-server") or shutil.which("redis-server")):
        terminalreporter.write_line(
            "the tests of histories in Redis were left out: no valkey-server or redis-server is installed"
        )
    if MILVUS_SERVER is None:
        terminalreporter.write_line(
            "the tests of an index in Milvus were left out: no milvus-server is installed (.ci/run does it)"
        )
    if shutil.which("ip") is None or os.geteuid():
        terminalreporter.write_line(
            "the tests with separate hosts were left out: they need network namespaces (iproute2, root)"
        )
    if not Path("build/helm/bin/helm").exists():
        terminalreporter.write_line(
            "the tests of the Helm chart were left out: helm is not installed (tools/fetch_helm.py)"
        )
    if not (find_spec("torchrec") or Path("build/torchrec/torchrec").exists()):
        terminalreporter.write_line(
            "the tests of training on several ranks were left out: no TorchRec is installed (make torchrec)"
        )
    if not (shutil.which("moto_server") or Path("build/s3/bin/moto_server").exists()):
        terminalreporter.write_line(
            "the tests of object storage were left out: no moto_server is installed (.ci/run installs it)"
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hardening", "proofs that the server is hard to hurt (tests/hardening)")
    group.addoption(
        "--hardening",
        choices=("short", "long"),
        default="short",
        help="Size of the proofs: short (default, with the other tests) or long (make harden).",
    )
    group.addoption(
        "--hardening-folder",
        metavar="FOLDER",
        default=None,
        help="Folder for the accidents of rebuilds, such as one on a network file system. Default: a tmpfs.",
    )
    group.addoption(
        "--hardening-report", metavar="FILE", default=None, help="Where to write the proofs' figures as JSON."
    )
