"""The first look at a version, in a child process: a file that crashes a parser kills only the child.

    python -m re4.serving.versions.version_check '{"path": …}'

The child verifies every byte before any parser opens a file, loads the version as a worker would, asks it its
golden queries, and says one line of JSON. This module's own imports are light: the server's parent process
uses `check_version` and holds no FAISS and no ONNX Runtime.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path

from re4.common.errors import BundleDamagedError, BundleError, BundleMismatchError, Re4Error
from re4.serving.host.threads import COMPUTE_ENVIRONMENT
from re4.serving.settings import ServerSettings

_ERRORS = {error.__name__: error for error in (BundleError, BundleDamagedError, BundleMismatchError)}


async def check_version(path: Path, settings: ServerSettings) -> None:
    """Verify, load and try a version in a child process.

    Args:
        path: The version's folder.
        settings: As the workers will run with.

    Raises:
        BundleError: the version must not go live; the message says why.
    """
    order = json.dumps({"path": str(path), "settings": settings.to_json()})
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "re4.serving.versions.version_check", order),
        stdin=asyncio.subprocess.PIPE,  # its end tells the child that this process has gone
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | COMPUTE_ENVIRONMENT,
    )
    try:
        assert child.stdout is not None
        output = await asyncio.wait_for(child.stdout.read(), settings.check_timeout_s)
        await child.wait()
    except TimeoutError:
        raise BundleError(
            f"{path}: checking it took longer than {settings.check_timeout_s:g} seconds and was stopped"
        ) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    _raise_failure(path, child.returncode, output)


def _raise_failure(path: Path, exit_code: int | None, output: bytes) -> None:
    if exit_code == 0:
        try:
            failure = json.loads(output)
        except ValueError:
            raise BundleDamagedError(
                f"{path}: the process that tried to load it answered {output[:100]!r}"
            ) from None
        if failure is not None:
            raise _ERRORS.get(failure["error"], BundleError)(failure["message"])
        return
    ended = f"exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        ended = f"signal {signal.Signals(-exit_code).name}"
    raise BundleDamagedError(f"{path}: the process that tried to load it ended with {ended}: do not use it")


def main() -> None:
    """The child: check the version of the order in `argv`, and say `null` or what is wrong."""
    order = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    failure = None
    # The answer goes to where stdout was; what a library prints joins the log.
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        load_and_try(Path(order["path"]), ServerSettings.from_json(order["settings"]))
    except Re4Error as error:
        failure = {"error": type(error).__name__, "message": str(error)}
    with os.fdopen(answer, "w") as file:
        json.dump(failure, file)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever sent
    os._exit(1)


def load_and_try(path: Path, settings: ServerSettings) -> None:
    """Verify, load and try a version in this process.

    Raises:
        BundleError: as `check_version`, where the process survives.
    """
    from re4.bundle.verify import verify_version

    manifest = verify_version(path)

    # Only now: these are the parsers.
    from re4.bundle.golden import GoldenQueries
    from re4.bundle.layout import GOLDEN
    from re4.serving.versions.golden_check import check_golden
    from re4.serving.versions.snapshot import load_snapshot

    size = settings.max_batch_size
    snapshot = load_snapshot(path, manifest, max_batch_size=size)
    check_golden(snapshot, GoldenQueries.read(path / GOLDEN), max_batch_size=size)


if __name__ == "__main__":
    main()
