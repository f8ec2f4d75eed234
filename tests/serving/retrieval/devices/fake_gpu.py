"""A fake GPU: FAISS's functions for one, recording which thread makes, searches and destroys an index."""

import threading
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from re4.serving.retrieval.devices import cuda


class FakeGpu:
    """A record of the calls."""

    def __init__(self) -> None:
        self.threads: dict[str, set[int]] = {"make": set(), "search": set(), "destroy": set()}
        self.num_alive = 0
        self.query_counts: list[int] = []
        self.destroyed = threading.Semaphore(0)

    def note(self, what: str) -> None:
        self.threads[what].add(threading.get_ident())

    @property
    def all_threads(self) -> set[int]:
        return set().union(*self.threads.values())


class FakeGpuIndex:
    def __init__(self, gpu: FakeGpu, index: Any) -> None:
        gpu.note("make")
        gpu.num_alive += 1
        self._gpu, self._index = gpu, index

    def search(self, queries: np.ndarray, k: int, *, params: Any = None) -> Any:
        self._gpu.note("search")
        self._gpu.query_counts.append(len(queries))
        return self._index.search(queries, k, params=params)

    def __del__(self) -> None:
        self._gpu.note("destroy")
        self._gpu.num_alive -= 1
        self._gpu.destroyed.release()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    found = FakeGpu()
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda _, __, index, options: FakeGpuIndex(found, index), raising=False
    )
    monkeypatch.setattr(faiss, "GpuClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(
        cuda.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(cuda, "CUDA_PROVIDERS", ("CPUExecutionProvider",))
    monkeypatch.setattr(cuda, "_PROVIDER", "CUDAExecutionProvider")
    return found
