"""The first load of a version, in a child process: a file that crashes a parser kills the child alone.

    python -m re4.serving.versions.version_check SUPERVISOR_PID '{"path": …}'

The child verifies every byte before a parser opens a file, loads the version as a worker would, runs its
golden queries, and prints one line of JSON. Its memory, CPU time and written files are limited, so that no
version takes what the live one needs. The module's own imports are light: the supervisor calls
`check_version` and holds neither FAISS nor ONNX Runtime.
"""

import asyncio
import json
import math
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from re4.bundle.verify import MAX_HASHING_THREADS
from re4.common.errors import BundleDamagedError, BundleError, BundleMismatchError, Re4Error, ServerError
from re4.serving.host.cgroups import available_memory_bytes
from re4.serving.host.failures import KILLED_WITHIN_S, exit_reason, is_transient, kill
from re4.serving.host.parent_death import end_with_parent
from re4.serving.host.threads import COMPUTE_ENVIRONMENT
from re4.serving.settings import ServerSettings

_MEMORY_SHARE: Final = 0.8
"""Of the memory that is free when a check begins, the part that the check may use."""
_MIN_MEMORY_BYTES: Final = 512 << 20
"""Enough for the libraries and a small version, also where little is free at the moment."""
_MAX_CORES: Final = MAX_HASHING_THREADS + 1
"""Busy threads of a check, at most: its limit of CPU time is as many times its time limit."""
_SEARCH_TIMEOUT_S: Final = 60.0
"""Longest search of an index on another machine: the first ones there may read their files."""
_MAX_LOG_BYTES: Final = 1 << 20
"""Most bytes that a check may append to the log, where that is a file. It writes no other file."""
_ERRORS = {error.__name__: error for error in (BundleError, BundleDamagedError, BundleMismatchError)}


async def check_version(path: Path, settings: ServerSettings) -> None:
    """Verify, load and try a version in a child process.

    Args:
        path: The version's folder.
        settings: The settings of the workers.

    Raises:
        BundleError: the version must not go live; the message says why.
        ServerError: the check came to no result: it ran out of time, memory or file descriptors, or was
            killed. A later check may succeed.
        OSError: the child could not be started.
    """
    request = json.dumps({"path": str(path), "settings": settings.to_json()})
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "re4.serving.versions.version_check", str(os.getpid()), request),
        stdin=asyncio.subprocess.PIPE,  # its end shows the child that this process has ended
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | COMPUTE_ENVIRONMENT,
    )
    try:
        assert child.stdout is not None
        output = await asyncio.wait_for(child.stdout.read(), settings.check_timeout_s)
        await child.wait()
    except TimeoutError:
        raise ServerError(
            f"{path}: checking it took longer than {settings.check_timeout_s:g} seconds and was stopped"
        ) from None
    finally:
        if child.returncode is None:
            kill(child)
            with suppress(TimeoutError):  # it waits for a dead file system: the system ends it later
                await asyncio.wait_for(child.wait(), KILLED_WITHIN_S)
    _raise_failure(path, child.returncode, output)


def _raise_failure(path: Path, exit_code: int | None, output: bytes) -> None:
    if exit_code != 0:
        message = f"{path}: the process that tried to load it ended with {exit_reason(exit_code)}"
        if not output or (exit_code is not None and exit_code < 0):
            raise ServerError(f"{message}; the check is repeated")
        raise BundleDamagedError(f"{message}: do not use it")
    try:
        failure = json.loads(output)
        if failure is None:
            return
        error = ServerError if failure["is_transient"] else _ERRORS.get(failure["error"], BundleError)
        message = str(failure["message"])
    except (ValueError, TypeError, KeyError):
        raise BundleDamagedError(
            f"{path}: the process that tried to load it answered {output[:100]!r}"
        ) from None
    raise error(message)


def main() -> None:
    """Check the version that `argv` names, in the child, and print `null` or what is wrong."""
    end_with_parent(int(sys.argv[1]))
    request = json.loads(sys.argv[2])
    failure: dict[str, Any] | None = None
    # The result goes to the original stdout; what a library prints joins the log.
    result = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings = ServerSettings.from_json(request["settings"])
    try:
        # A child that ends without it did not open the version, and its end is no verdict. JSON ignores it.
        os.write(result, b" ")
        limit_resources(settings)
        load_and_try(Path(request["path"]), settings)
    except (Re4Error, OSError, MemoryError, ImportError) as error:
        message = str(error) if isinstance(error, Re4Error) else f"{request['path']}: {error!r}"
        if isinstance(error, MemoryError):
            message += f": the check may use {_MEMORY_SHARE:.0%} of the memory that is free when it begins"
        failure = {
            "error": type(error).__name__,
            "message": message,
            "is_transient": is_transient(error),
        }
    with os.fdopen(result, "w") as file:
        json.dump(failure, file)


def limit_resources(settings: ServerSettings) -> None:
    """Limit this process's memory, CPU time and written files.

    Memory is that of the process alone (RLIMIT_DATA), because mapped files, such as the vectors, can be
    reclaimed at any time. Without the memory check it has no limit.
    """
    if settings.memory_check:
        free_bytes = available_memory_bytes()
        _limit(resource.RLIMIT_DATA, max(int(free_bytes * _MEMORY_SHARE), _MIN_MEMORY_BYTES))
    _limit(resource.RLIMIT_CPU, math.ceil(settings.check_timeout_s * _MAX_CORES))
    _limit(resource.RLIMIT_FSIZE, os.fstat(sys.stderr.fileno()).st_size + _MAX_LOG_BYTES)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def load_and_try(path: Path, settings: ServerSettings) -> None:
    """Verify, load and try a version in this process.

    Raises:
        BundleError: as `check_version`, where the process survives.
    """
    from re4.bundle.verify import verify_version

    maps_vectors = settings.maps_vectors
    manifest = verify_version(path, maps_vectors=maps_vectors)

    # The parsers are imported only after every byte was verified.
    from re4.bundle.golden import GoldenQueries
    from re4.bundle.layout import GOLDEN
    from re4.bundle.milvus.collections import check_collection
    from re4.serving.versions.golden_check import check_golden
    from re4.serving.versions.snapshot import load_snapshot

    size = settings.max_batch_size
    check_collection(path, manifest)
    snapshot = load_snapshot(
        path,
        manifest,
        max_batch_size=size,
        index_timeout_s=_SEARCH_TIMEOUT_S,
        maps_vectors=maps_vectors,
    )
    check_golden(snapshot, GoldenQueries.read(path / GOLDEN), max_batch_size=size)


if __name__ == "__main__":
    main()
