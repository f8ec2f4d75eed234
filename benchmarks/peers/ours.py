"""`re4 serve` as it comes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from re4.benchmarks.load_generator.requests import IdList
from re4.benchmarks.load_generator.target import running_server
from re4.benchmarks.load_generator.transport import OURS, Callee
from re4.benchmarks.peers.system import Material, Server, Setting
from re4.protos.v1 import retrieval_pb2


class Ours:
    """One worker process of `re4 serve`, called over gRPC."""

    name: Final = "re4"
    title: Final = "Re4 Retrieval"
    client: Final = "its own gRPC contract"
    settings: Final[Sequence[Setting]] = (Setting(name="default", how="re4 serve, no options"),)
    efforts: Final[Sequence[int]] = (0,)

    def missing(self) -> str | None:
        """Never."""
        return None

    def prepare(self, material: Material) -> dict[str, object]:
        """Nothing: the bundle is ready."""
        return {}

    @contextmanager
    def running(self, material: Material, setting: Setting, effort: int) -> Iterator[Server]:
        """Serve the live version of the bundle directory."""
        with running_server(material.version.parent, num_processes=1) as (address, pid):
            yield Server(address, pid)

    def callee(self) -> Callee:
        """`Retrieve`; replies are read, with their stage times."""
        return OURS

    def payloads(self, material: Material) -> list[bytes]:
        """Requests of the contract."""
        return material.histories.payloads(num_candidates=material.num_candidates, exclude_history=False)

    def item_ids(self, reply: bytes) -> IdList:
        """The candidates of a reply."""
        items = retrieval_pb2.RetrieveReply.FromString(reply).items
        return list(items.strings) or list(items.ints)
