"""A peer's server: a script in an environment of its own, run on a free port until it is not needed."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from re4.benchmarks.load_generator.transport import Callee
from re4.benchmarks.peers.asking import wait_until_answered
from re4.benchmarks.peers.system import Server
from re4.common.errors import ServerError
from re4.serving.host.threads import COMPUTE_ENVIRONMENT

PEERS: Final = Path(__file__).resolve().parents[1] / "peers" / "baselines"
SCRIPTS: Final = PEERS / "servers"
_START_TIMEOUT_S: Final = 300.0
_END_TIMEOUT_S: Final = 40.0
_LOG_BYTES: Final = 4_000


def python_of(environment: str) -> Path:
    """The interpreter of a peers' environment."""
    return PEERS / environment / "bin" / "python"


def missing(environment: str) -> str | None:
    """Why an environment cannot be used; None where it can."""
    python = python_of(environment)
    return None if python.exists() else f"no environment at {python.parents[1]}: run make peers"


@contextmanager
def peer_process(
    environment: str, script: str, words: Sequence[str], callee: Callee, payload: bytes
) -> Iterator[Server]:
    """Run a script of `SCRIPTS` with `--port` while the block runs, from when it answers a request.

    Raises:
        ServerError: it ended, or did not answer; the end of what it wrote is in the message.
    """
    port = _free_port()
    command = [str(python_of(environment)), str(SCRIPTS / script), *words, "--port", str(port)]
    with TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | COMPUTE_ENVIRONMENT,
            start_new_session=True,  # Ctrl-C ends the benchmark, and that ends the server
        )

        def problem() -> str | None:
            if process.poll() is None:
                return None
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
            return f"{script} ended before it answered:\n{log.read().decode(errors='replace')}"

        address = f"127.0.0.1:{port}"
        try:
            wait_until_answered(callee, address, payload, timeout_s=_START_TIMEOUT_S, problem=problem)
            yield Server(address, process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_TIMEOUT_S)
            with suppress(ProcessLookupError):  # whoever is left of it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def packages(environment: str, names: Sequence[str]) -> dict[str, str]:
    """Which versions of some packages an environment has.

    Raises:
        ServerError: it lacks one.
    """
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    command = [str(python_of(environment)), "-c", code, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"{environment}: {done.stderr.strip().splitlines()[-1]}. Run make peers again")
    return dict(zip(names, done.stdout.split(), strict=True))


def run_to_end(environment: str, script: str, words: Sequence[str]) -> None:
    """Run a script that builds something.

    Raises:
        ServerError: it failed; the end of what it wrote is in the message.
    """
    command = [str(python_of(environment)), str(SCRIPTS / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"{script} ended with {done.returncode}: {done.stderr[-_LOG_BYTES:]}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
