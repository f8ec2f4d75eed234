"""NVIDIA Triton by way of pytriton, called over Triton's gRPC method."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from re4.benchmarks.load_generator.requests import IdList
from re4.benchmarks.load_generator.transport import Callee, GrpcCallee, read_nothing
from re4.benchmarks.peers import kserve
from re4.benchmarks.peers.peer_process import missing, packages, peer_process
from re4.benchmarks.peers.system import Material, Server, Setting
from re4.bundle.verify import read_manifest
from re4.common.errors import UsageError

_ENVIRONMENT: Final = ".venv-triton"
_MODEL: Final = "re4"
_BATCHER: Final = "dynamic batcher, max_batch_size 64, max_queue_delay_microseconds"


class Triton:
    """The same encoder, index and merge behind its dynamic batcher."""

    name: Final = "triton"
    title: Final = "NVIDIA Triton (pytriton)"
    client: Final = "its gRPC method, ids as BYTES tensors"
    settings: Final[Sequence[Setting]] = (
        Setting(name="latency", how=f"{_BATCHER} 0"),
        Setting(name="throughput", how=f"{_BATCHER} 2000"),
    )
    efforts: Final[Sequence[int]] = (0,)

    def missing(self) -> str | None:
        """Where its environment is not there."""
        return missing(_ENVIRONMENT)

    def prepare(self, material: Material) -> dict[str, object]:
        """Nothing to build; its versions.

        Raises:
            UsageError: the catalogue's ids are integers; the peer's tensors hold text.
        """
        if read_manifest(material.version).items.id_kind != "string":
            raise UsageError("the peers are written for string ids; this bundle has integers")
        return dict(packages(_ENVIRONMENT, ("nvidia-pytriton", "faiss-cpu", "onnxruntime", "numpy")))

    @contextmanager
    def running(self, material: Material, setting: Setting, effort: int) -> Iterator[Server]:
        """Run the peer's script."""
        words = [
            str(material.version),
            *("--setting", setting.name, "--num-candidates", str(material.num_candidates)),
        ]
        first = self.payloads(material)[0]
        with peer_process(_ENVIRONMENT, "triton_server.py", words, self.callee(), first) as server:
            yield server

    def callee(self) -> Callee:
        """Replies are not read while measuring."""
        return GrpcCallee(method=kserve.METHOD, read=read_nothing)

    def payloads(self, material: Material) -> list[bytes]:
        """Histories as tensors of bytes, padded with empty ids."""
        width = read_manifest(material.version).model.max_history_length
        return [
            kserve.request(_MODEL, "history", [str(id_).encode() for id_ in ids] + [b""] * (width - len(ids)))
            for ids in material.histories.ids
        ]

    def item_ids(self, reply: bytes) -> IdList:
        """The candidates of a reply."""
        return [id_.decode() for id_ in kserve.bytes_of(reply, "ids")]
