"""The web services, called with JSON over HTTP: plain FastAPI around FAISS, and the two-hop design."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from re4.benchmarks.load_generator.requests import IdList
from re4.benchmarks.load_generator.transport import Callee, HttpCallee
from re4.benchmarks.peers.peer_process import missing, packages, peer_process, run_to_end
from re4.benchmarks.peers.system import Material, Server, Setting
from re4.bundle.verify import read_manifest

_ENVIRONMENT: Final = ".venv-web"
_WEB: Final = ("fastapi", "uvicorn", "uvloop")
_POSTGRES: Final = Path("/usr/lib/postgresql/17/bin/postgres")
_PGVECTOR: Final = Path("/usr/share/postgresql/17/extension/vector.control")


class _Service:
    """What both have in common."""

    client = "JSON over HTTP/1.1, connections stay open"

    def missing(self) -> str | None:
        """Where the environment is not there."""
        return missing(_ENVIRONMENT)

    def callee(self) -> Callee:
        """Replies are not read while measuring."""
        return HttpCallee(path="/retrieve")

    def payloads(self, material: Material) -> list[bytes]:
        """Questions as JSON."""
        return [
            json.dumps(
                {"history": [str(id_) for id_ in ids], "num_candidates": material.num_candidates}
            ).encode()
            for ids in material.histories.ids
        ]

    def item_ids(self, reply: bytes) -> IdList:
        """The candidates of a reply."""
        found: list[str] = json.loads(reply)["ids"]
        return found


class FastApi(_Service):
    """The same encoder, index and merge in a service as tutorials write it."""

    name: Final = "fastapi"
    title: Final = "FastAPI + FAISS"
    settings: Final[Sequence[Setting]] = (
        Setting(name="loop", how="uvicorn, one worker, `async def`: answers in the event loop"),
        Setting(name="threads", how="uvicorn, one worker, `def`: answers in FastAPI's pool of threads"),
    )
    efforts: Final[Sequence[int]] = (0,)

    def prepare(self, material: Material) -> dict[str, object]:
        """Nothing to build; its versions."""
        return dict(packages(_ENVIRONMENT, (*_WEB, "faiss-cpu", "onnxruntime", "numpy")))

    @contextmanager
    def running(self, material: Material, setting: Setting, effort: int) -> Iterator[Server]:
        """Run the peer's script."""
        words = [str(material.version), "--setting", setting.name]
        first = self.payloads(material)[0]
        with peer_process(_ENVIRONMENT, "fastapi_server.py", words, self.callee(), first) as server:
            yield server


class TwoHop(_Service):
    """A service that encodes, and PostgreSQL with pgvector that is asked K times."""

    name: Final = "two-hop"
    title: Final = "Encoder service + pgvector"
    settings: Final[Sequence[Setting]] = (
        Setting(name="one", how="the K searches one after the other over one connection"),
        Setting(name="all", how="the K searches at once over K connections"),
    )
    efforts: Final[Sequence[int]] = (40, 60, 80, 100, 110, 120, 140, 170, 200, 240, 280, 340, 400, 600, 800)
    """hnsw.ef_search, from pgvector's own default on."""

    def missing(self) -> str | None:
        """Where the environment or PostgreSQL is not there."""
        if problem := missing(_ENVIRONMENT):
            return problem
        if _POSTGRES.exists() and _PGVECTOR.exists():
            return None
        return "PostgreSQL 17 with pgvector is not installed: run make peers, which says how"

    def prepare(self, material: Material) -> dict[str, object]:
        """Fill a database of its own and build its index; minutes for a million items."""
        folder = self._folder(material)
        run_to_end(_ENVIRONMENT, "postgres.py", [str(material.version), str(folder)])
        facts: dict[str, object] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return facts | packages(_ENVIRONMENT, (*_WEB, "asyncpg", "pgvector", "onnxruntime", "numpy"))

    @contextmanager
    def running(self, material: Material, setting: Setting, effort: int) -> Iterator[Server]:
        """Run the peer's script, and PostgreSQL by it."""
        words = [
            *(str(material.version), "--folder", str(self._folder(material))),
            *("--setting", setting.name, "--ef-search", str(effort)),
        ]
        first = self.payloads(material)[0]
        with peer_process(_ENVIRONMENT, "two_hop_server.py", words, self.callee(), first) as server:
            yield server

    def _folder(self, material: Material) -> Path:
        """Its content is the item vectors, so versions with the same ones share it."""
        return material.work / f"postgres-{read_manifest(material.version).items.space[:16]}"
