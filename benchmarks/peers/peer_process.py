"""Peers' scripts, run in an environment of their own, and single calls of a server."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import Final

from re4.benchmarks.common.peer_environments import BASELINES, python_of
from re4.benchmarks.load_generator.outcome import FailedCallError
from re4.benchmarks.load_generator.transport import Transport, call_in_turn
from re4.common.errors import ServerError
from re4.serving.host.threads import COMPUTE_ENVIRONMENT

SCRIPTS: Final = BASELINES / "servers"
_START_TIMEOUT_S: Final = 300.0
_END_TIMEOUT_S: Final = 40.0
_LOG_BYTES: Final = 4_000
_TRY_S: Final = 1.0
_PAUSE_S: Final = 0.2


@contextmanager
def peer_process(
    environment: str, script: str, words: Sequence[str], transport: Transport, payload: bytes
) -> Iterator[tuple[str, int]]:
    """Run a script of `SCRIPTS`, from when it answers a request; gives its address and process id."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    address = f"127.0.0.1:{port}"
    with TemporaryFile() as log:
        process = subprocess.Popen(
            [*_command(environment, script, words), "--port", str(port)],
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

        try:
            wait_until_answered(transport, address, payload, timeout_s=_START_TIMEOUT_S, problem=problem)
            yield address, process.pid
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_TIMEOUT_S)
            with suppress(ProcessLookupError):  # processes that it left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def packages(environment: str, names: Sequence[str]) -> dict[str, str]:
    """Return the versions of some packages of an environment."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    command = [str(python_of(environment)), "-c", code, *names]
    printed = _run(environment, command, hint=". Run make peers again")
    return dict(zip(names, printed.split(), strict=True))


def run_to_end(environment: str, script: str, words: Sequence[str]) -> None:
    """Run a script that builds something."""
    _run(script, _command(environment, script, words))


def _run(name: str, command: Sequence[str], hint: str = "") -> str:
    """Return what a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        end = done.stderr.strip()[-_LOG_BYTES:]
        raise ServerError(f"{name} ended with {done.returncode}: {end}{hint}")
    return done.stdout


def _command(environment: str, script: str, words: Sequence[str]) -> list[str]:
    return [str(python_of(environment)), str(SCRIPTS / script), *words]


def wait_until_answered(
    transport: Transport, address: str, payload: bytes, *, timeout_s: float, problem: Callable[[], str | None]
) -> None:
    """Repeat a call until there is an answer; `problem` returns why there will never be one."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            asyncio.run(call_in_turn(transport, address, [payload], connect_timeout_s=_TRY_S))
            return
        except (FailedCallError, TimeoutError) as error:
            if found := problem():
                raise ServerError(found) from None
            if time.monotonic() > until:
                raise ServerError(f"no answer from {address} within {timeout_s:g} s: {error}") from None
        time.sleep(_PAUSE_S)
