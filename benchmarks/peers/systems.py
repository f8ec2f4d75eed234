"""The systems that are compared: `re4 serve`, NVIDIA Triton, a FastAPI service, and a two-hop design."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, TypeAlias

from re4.benchmarks.common.peer_environments import missing
from re4.benchmarks.load_generator.http_transport import HttpTransport
from re4.benchmarks.load_generator.requests import Histories, IdList
from re4.benchmarks.load_generator.server import running_server
from re4.benchmarks.load_generator.transport import RETRIEVE, GrpcTransport, Transport, parse_nothing
from re4.benchmarks.peers import kserve
from re4.benchmarks.peers.peer_process import packages, peer_process, run_to_end
from re4.bundle.verify import read_manifest
from re4.common.errors import UsageError
from re4.protos.v1 import retrieval_pb2

RunningServer: TypeAlias = AbstractContextManager[tuple[str, int]]
_WEB: Final = ("fastapi", "uvicorn", "uvloop")
_POSTGRES: Final = Path("/usr/lib/postgresql/17/bin/postgres")
_PGVECTOR: Final = Path("/usr/share/postgresql/17/extension/vector.control")
_BATCHER: Final = "dynamic batcher, max_batch_size 64, max_queue_delay_microseconds"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What every system serves, and the requests."""

    version: Path
    """Folder of the bundle version."""
    histories: Histories
    num_candidates: int
    work: Path
    """Folder that systems may keep built data in."""


class System:
    """A kind of server; by default a script of `baselines/servers` in an environment of its own."""

    name: ClassVar[str]
    """On the command line."""
    title: ClassVar[str]
    """For people."""
    client: ClassVar[str]
    """How it is called, for people."""
    settings: ClassVar[Mapping[str, str]]
    """Ways to run it: what was set, in the words of the system's documentation, by name."""
    efforts: ClassVar[Sequence[int]] = (0,)
    """Its own search effort, ascending; only 0 where the index's tuning decides."""
    transport: ClassVar[Transport]
    environment: ClassVar[str]
    script: ClassVar[str]
    packages: ClassVar[Sequence[str]]
    """Packages whose versions the report names."""

    def missing(self) -> str | None:
        """Return why it cannot be run here; None where it can."""
        return missing(self.environment)

    def prepare(self, workload: Workload) -> dict[str, object]:
        """Build what it needs, where that does not exist yet; return facts for the report."""
        return dict(packages(self.environment, self.packages))

    def running(self, workload: Workload, setting: str, effort: int) -> RunningServer:
        """Run it on the cores of this thread, from when it answers; gives address and process id."""
        words = [str(workload.version), "--setting", setting, *self.options(workload, effort)]
        first = self.payloads(workload)[0]
        return peer_process(self.environment, self.script, words, self.transport, first)

    def options(self, workload: Workload, effort: int) -> list[str]:
        """Return further options of the script."""
        return []

    def payloads(self, workload: Workload) -> list[bytes]:
        """Return the requests, one for each history; by default as JSON."""
        return [
            json.dumps({"history": list(map(str, ids)), "num_candidates": workload.num_candidates}).encode()
            for ids in workload.histories.ids
        ]

    def item_ids(self, reply: bytes) -> IdList:
        """Return the candidates of a reply, best first."""
        ids: list[str] = json.loads(reply)["ids"]
        return ids


class Re4(System):
    """One worker process of `re4 serve`, as it comes."""

    name, title = "re4", "Re4 Retrieval"
    client = "its own gRPC contract, HTTP/2 by nghttp2"
    settings: ClassVar = {"default": "re4 serve, no options"}
    transport = RETRIEVE

    def missing(self) -> str | None:
        """Return None: it is this package."""
        return None

    def prepare(self, workload: Workload) -> dict[str, object]:
        """Build nothing: the bundle is ready."""
        return {}

    def running(self, workload: Workload, setting: str, effort: int) -> RunningServer:
        """Serve the live version of the bundle directory."""
        return running_server(workload.version.parent, num_processes=1)

    def payloads(self, workload: Workload) -> list[bytes]:
        """Return requests of the contract."""
        return workload.histories.payloads(num_candidates=workload.num_candidates, exclude_history=False)

    def item_ids(self, reply: bytes) -> IdList:
        """Return the candidates of a reply."""
        items = retrieval_pb2.RetrieveReply.FromString(reply).items
        return list(items.strings) or list(items.ints)


class Triton(System):
    """NVIDIA Triton by way of pytriton: the same encoder, index and merge behind its dynamic batcher."""

    name, title = "triton", "NVIDIA Triton (pytriton)"
    client = "its gRPC method, HTTP/2 by nghttp2, ids as BYTES tensors"
    settings: ClassVar = {"latency": f"{_BATCHER} 0", "throughput": f"{_BATCHER} 2000"}
    transport = GrpcTransport(method=kserve.METHOD, parse=parse_nothing)
    environment, script = ".venv-triton", "triton_server.py"
    packages = ("nvidia-pytriton", "faiss-cpu", "onnxruntime", "numpy")

    def prepare(self, workload: Workload) -> dict[str, object]:
        """Refuse integer ids: the tensors hold text."""
        if read_manifest(workload.version).items.id_kind != "string":
            raise UsageError("the peers are written for string ids; this bundle has integers")
        return super().prepare(workload)

    def payloads(self, workload: Workload) -> list[bytes]:
        """Return histories as tensors of bytes, padded with empty ids."""
        width = read_manifest(workload.version).model.max_history_length
        return [
            kserve.request("re4", "history", [str(id_).encode() for id_ in ids] + [b""] * (width - len(ids)))
            for ids in workload.histories.ids
        ]

    def item_ids(self, reply: bytes) -> IdList:
        """Return the candidates of a reply."""
        return [id_.decode() for id_ in kserve.bytes_of(reply, "ids")]

    def options(self, workload: Workload, effort: int) -> list[str]:
        """Return the number of candidates."""
        return ["--num-candidates", str(workload.num_candidates)]


class _WebService(System):
    client = "JSON over HTTP/1.1, connections stay open"
    transport = HttpTransport(path="/retrieve")
    environment, script = ".venv-web", "web_server.py"


class FastApi(_WebService):
    """The same encoder, index and merge in a FastAPI service as tutorials write it."""

    name, title = "fastapi", "FastAPI + FAISS"
    settings: ClassVar = {
        "loop": "uvicorn, one worker, `async def`: answers in the event loop",
        "threads": "uvicorn, one worker, `def`: answers in FastAPI's pool of threads",
    }
    packages = (*_WEB, "faiss-cpu", "onnxruntime", "numpy")


class TwoHop(_WebService):
    """A service that encodes, and PostgreSQL with pgvector that is searched K times."""

    name, title = "two-hop", "Encoder service + pgvector"
    settings: ClassVar = {
        "one": "the K searches one after the other over one connection",
        "all": "the K searches at once over K connections",
    }
    efforts = (40, 60, 80, 100, 110, 120, 140, 170, 200, 240, 280, 340, 400, 600, 800)
    """hnsw.ef_search, from pgvector's own default on."""
    packages = (*_WEB, "asyncpg", "pgvector", "onnxruntime", "numpy")

    def missing(self) -> str | None:
        """Return that the environment or PostgreSQL is not installed."""
        if (problem := super().missing()) or (_POSTGRES.exists() and _PGVECTOR.exists()):
            return problem
        return "PostgreSQL 17 with pgvector is not installed: run make peers, which prints the command"

    def prepare(self, workload: Workload) -> dict[str, object]:
        """Fill a database of its own and build its index; minutes for a million items."""
        folder = self._folder(workload)
        run_to_end(self.environment, "postgres.py", [str(workload.version), str(folder)])
        facts: dict[str, object] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return facts | super().prepare(workload)

    def options(self, workload: Workload, effort: int) -> list[str]:
        """Return the database's folder and the effort."""
        return ["--folder", str(self._folder(workload)), "--ef-search", str(effort)]

    def _folder(self, workload: Workload) -> Path:
        """Return the database's folder; versions with the same item vectors share it."""
        return workload.work / f"postgres-{read_manifest(workload.version).items.space[:16]}"


SYSTEMS: Final[tuple[System, ...]] = (Re4(), Triton(), TwoHop(), FastApi())
OURS: Final = SYSTEMS[0].name
