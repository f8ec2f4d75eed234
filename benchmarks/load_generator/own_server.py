"""A server of our own under load, and the most that callers who wait for their answers get out of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from re4.benchmarks.common.cores import on_core
from re4.benchmarks.common.machine import describe_machine_alone
from re4.benchmarks.load_generator.call_stats import Tally
from re4.benchmarks.load_generator.client import ClientSettings, LoadClient
from re4.benchmarks.load_generator.load import ClosedLoad, Timing
from re4.benchmarks.load_generator.requests import choose_histories
from re4.benchmarks.load_generator.target import running_server, server_info

_SATURATING: Final = ClosedLoad(concurrency=64)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What to serve, and what to ask it."""

    bundles: Path
    """Bundle directory to start a server on."""
    data: Path | None
    """Prepared data set with real histories; None for generated ones."""
    num_candidates: int
    seed: int
    """Of histories and arrival times."""
    num_processes: int = 1
    """Of the server."""
    num_workers: int = 1
    """Processes of the client."""
    server_options: tuple[str, ...] = ()
    """Further words for `re4 serve`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnServer:
    """A server that runs, and a client connected to it."""

    address: str
    pid: int
    info: dict[str, Any]
    client: LoadClient
    payloads: list[bytes]
    source: str
    """Where the histories come from."""
    machine: dict[str, Any]
    """As it was before the server started."""
    subject: Subject

    @property
    def version(self) -> str:
        """The bundle version that answers."""
        return str(self.info["version"])

    def saturate(self, timing: Timing, *, seed: int) -> Tally:
        """Let 64 callers who wait for their answers call for a while."""
        return self.client.run(_SATURATING, timing, seed=seed, version=self.version)

    def facts(self) -> dict[str, Any]:
        """What a report says of machine, server and requests."""
        return {
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": self.machine,
            "server": {
                "info": self.info,
                "num_processes": self.subject.num_processes,
                "options": list(self.subject.server_options),
            },
            "requests": {"source": self.source, "num_candidates": self.subject.num_candidates},
        }


@contextmanager
def own_server(subject: Subject, *, cores: tuple[int, int] | None = None) -> Iterator[OwnServer]:
    """Run a server, and a client for it, while the block runs.

    Args:
        subject: What to serve and ask.
        cores: One for the server, one for the client and for this thread; None leaves it to the kernel.

    Raises:
        Re4Error: the server or the client did not start.
    """
    machine = describe_machine_alone()
    with ExitStack() as stack:
        with on_core(cores[0]) if cores else nullcontext():
            address, pid = stack.enter_context(
                running_server(subject.bundles, *subject.server_options, num_processes=subject.num_processes)
            )
        stack.enter_context(on_core(cores[1]) if cores else nullcontext())
        info = server_info(address)
        histories = choose_histories(
            info, data=subject.data, ids=None, bundles=subject.bundles, seed=subject.seed
        )
        payloads = histories.payloads(num_candidates=subject.num_candidates, exclude_history=False)
        client = LoadClient(address, payloads, ClientSettings(num_workers=subject.num_workers))
        yield OwnServer(
            address=address,
            pid=pid,
            info=info,
            client=stack.enter_context(client),
            payloads=payloads,
            source=histories.source,
            machine=machine,
            subject=subject,
        )
