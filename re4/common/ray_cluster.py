"""A connection to a Ray cluster, and calls of functions on its nodes."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from re4.common.errors import Re4Error, UsageError


class Engine(StrEnum):
    """The place of the work."""

    LOCAL = "local"
    RAY = "ray"


RayAddress = Annotated[
    str | None,
    typer.Option(
        help="Address of the Ray cluster. Default: that of RAY_ADDRESS, or the one of this machine, or a new "
        "one."
    ),
]

_CONNECT_TIMEOUT_S: Final = 10
MAX_RETRIES: Final = 10
"""Times that a call is repeated whose process or node ended."""
_ENVIRONMENT: Final = {
    "env_vars": dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
}
"""Of the processes of a node: one for each core, so that a library needs no threads."""


class RayCluster:
    """A cluster to which this process is connected. Functions are those of modules that every node has."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    @property
    def num_cores(self) -> int:
        """Cores of all nodes."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def call(self, function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> Any:
        """Call a function on some node; return a reference to its result, or one for each of its results.

        References among the arguments are replaced by their values. A call whose node ends is repeated, and
        so are the calls whose results were lost with it.
        """
        remote = self._ray.remote(function).options(num_returns=num_returns, max_retries=MAX_RETRIES)
        return remote.remote(*arguments)

    def start_actor(self, kind: type, *arguments: Any) -> Any:
        """Start an actor on a free core, as soon as there is one. It ends with its node."""
        return self._ray.remote(kind).options(num_cpus=1, max_restarts=0).remote(*arguments)

    def first_completed(self, references: Sequence[Any]) -> tuple[Any, Any]:
        """Return the first reference whose call has ended, and its value, or None where its actor ended.

        Of several, it is the first in the given order: no actor waits because others are faster.

        Raises:
            RayTaskError: The call failed.
        """
        references = list(references)
        self._ray.wait(references, num_returns=1)
        completed, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        first = next(reference for reference in references if reference in completed)
        try:
            return first, self._ray.get(first)
        except self._ray.exceptions.RayActorError:
            return first, None

    def put(self, value: Any) -> Any:
        """Return a reference to a value that every node can read."""
        return self._ray.put(value)

    def results(self, references: Sequence[Any], note: Callable[[str], None], title: str) -> list[Any]:
        """Return the values of references, in their order, and note the progress."""
        left, number = list(references), len(references)
        while left:
            done, left = self._ray.wait(left, num_returns=1)
            self._ray.get(done)  # an error of one call is seen before the others end
            note(f"{title}: {number - len(left):,} of {number:,}")
        values: list[Any] = self._ray.get(list(references))
        return values


@contextmanager
def ray_cluster(address: str | None) -> Iterator[RayCluster]:
    """Connect to a cluster while the block runs; a connection that this process has already is used.

    Args:
        address: Of the cluster; None for the one that Ray finds (`RAY_ADDRESS`, or one on this machine), or
            a new one on this machine.

    Raises:
        UsageError: There is no such cluster.
        Re4Error: A call failed, with its own error, or the cluster is lost.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        address = address or os.environ.get("RAY_ADDRESS")
        try:
            _check_reachable(address)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env=_ENVIRONMENT,
            )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise UsageError(
                f"--ray-address {address}: no connection to a Ray cluster ({error}); start one with "
                "`ray start --head`, or leave the option out"
            ) from None
    try:
        yield RayCluster(ray)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Re4Error):
            raise cause from None
        raise Re4Error(f"a call on the Ray cluster failed: {cause!r}") from error
    except ray.exceptions.RayError as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Re4Error(f"the Ray cluster did not finish the work: {first}") from error
    finally:
        if is_ours:
            ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Connect to HOST:PORT once, because Ray tries for minutes.

    Raises:
        OSError: Nothing listens there.
    """
    host, _, port = (address or "").rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
