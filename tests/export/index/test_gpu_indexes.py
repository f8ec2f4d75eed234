"""`--device cuda`: indexes that a GPU can hold, CAGRA graphs among them, and clear errors otherwise.

A GPU itself is not tested here: a fake one builds the graph.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.common.errors import ExportError, UsageError
from re4.exporting.index.build import build_index
from re4.exporting.index.gpu import cagra_degree
from re4.exporting.index.index_names import choose_index
from re4.exporting.index.index_stages import factory_for
from re4.exporting.settings import TargetDevice, VersionSettings
from re4.exporting.storage.build_cache import Checkpoints

NUM_ITEMS, DIM = 3000, 16


@pytest.fixture(scope="module")
def vectors(mapped_items: Callable[[int, int], np.ndarray]) -> np.ndarray:
    return mapped_items(NUM_ITEMS, DIM)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return VectorSpace(num_items=NUM_ITEMS, embedding_dim=DIM).interests(40, 1)


class FakeCagra:
    """FAISS's GPU index, faked by a graph that a CPU builds."""

    num_built = 0

    def __init__(self, resources: Any, width: int, metric: int, config: Any) -> None:
        assert (metric, config.intermediate_graph_degree) == (
            faiss.METRIC_INNER_PRODUCT,
            2 * config.graph_degree,
        )
        self._vectors = np.empty((0, width), np.float32)

    def train(self, vectors: np.ndarray) -> None:
        FakeCagra.num_built += 1
        self._vectors = vectors

    def copyTo(self, graph: Any) -> None:
        graph.add(self._vectors)
        graph.base_level_only = True


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, fake in (
        ("GpuIndexCagra", FakeCagra),
        ("GpuIndexCagraConfig", SimpleNamespace),
        ("StandardGpuResources", object),
        ("get_num_gpus", lambda: 1),
    ):
        monkeypatch.setattr(faiss, name, fake, raising=False)


def test_auto_chooses_by_device() -> None:
    assert choose_index(900_000)[0] == "ivf-pq"
    assert choose_index(900_000, device=TargetDevice.CUDA)[0] == "flat"
    assert choose_index(9_000_000, device=TargetDevice.CUDA)[0] == "ivf"
    assert "on a GPU" in choose_index(900_000, device=TargetDevice.CUDA)[1]


@pytest.mark.parametrize("index", ["ivf-pq", "ivf-rabitq", "hnsw-sq8"])
def test_an_index_that_no_gpu_holds_is_refused_before_any_work(index: str) -> None:
    with pytest.raises(UsageError, match=r"FAISS has no GPU index for .* choose flat, ivf, ivf-sq8 or cagra"):
        factory_for(VersionSettings(index=index, device=TargetDevice.CUDA), NUM_ITEMS, DIM)
    assert factory_for(VersionSettings(index=index), NUM_ITEMS, DIM)


@pytest.mark.parametrize("factory", ["IVF256,Flat", "IVF256,SQ8"])
def test_lists_for_a_gpu_have_flat_centroids(factory: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """And the same scores as lists for processors, as they hold the same."""
    on_gpu = build_index(factory, vectors, device=TargetDevice.CUDA)
    on_cpu = build_index(factory, vectors)
    assert type(faiss.downcast_index(on_gpu.index.quantizer)).__name__ in {"IndexFlat", "IndexFlatIP"}
    assert type(faiss.downcast_index(on_cpu.index.quantizer)).__name__ == "IndexRefineFlat"
    found = [built.search({"nprobe": 256, "k_factor": 1}, queries, 10) for built in (on_gpu, on_cpu)]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)


def test_a_cagra_graph_serves_on_processors_too(
    gpu: None, vectors: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    assert factory_for(VersionSettings(index="cagra", device=TargetDevice.CUDA), NUM_ITEMS, DIM) == (
        "CAGRA64",
        None,
    )
    stages, FakeCagra.num_built = Checkpoints(tmp_path), 0
    built = build_index("CAGRA32", vectors, checkpoints=stages, device=TargetDevice.CUDA)
    again = build_index("CAGRA32", vectors, checkpoints=stages, device=TargetDevice.CUDA)
    assert FakeCagra.num_built == 1, "a second try finds the graph that the first one made"
    assert built.kind == "hnsw"
    exact = np.argsort(-(queries[:, 0] @ vectors.T), axis=1)[:, :10]
    for one in (built, again):
        rows = one.search({"ef_search": 100, "k_factor": 1}, queries, 10)[1][:, 0]
        assert np.mean([np.isin(a, b).mean() for a, b in zip(exact, rows, strict=True)]) > 0.95


def test_a_graph_that_cannot_be_built_here_is_refused_with_a_way_out(
    vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"the build faiss-gpu-cuvs can.*Or choose hnsw"):
        factory_for(VersionSettings(index="cagra"), NUM_ITEMS, DIM)
    monkeypatch.setattr(faiss, "GpuIndexCagra", FakeCagra, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(UsageError, match=r"FAISS finds no GPU here.*Or choose hnsw"):
        build_index("CAGRA32", vectors)


def test_few_items_and_odd_links_are_refused(gpu: None, vectors: np.ndarray) -> None:
    with pytest.raises(ExportError, match=r"more than 64 items are needed, there are 50"):
        build_index("CAGRA32", vectors[:50])
    with pytest.raises(UsageError, match=r"an even number of links"):
        build_index("CAGRA33", vectors)
    assert [cagra_degree(text) for text in ("CAGRA64", "CAGRA", "HNSW32", "CAGRA64,Flat")] == [64, 0, 0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("index", ["flat", "ivf", "ivf-sq8", "cagra"])
def test_an_index_built_for_a_gpu_finds_the_items_on_one(
    index: str, vectors: np.ndarray, queries: np.ndarray
) -> None:
    from re4.serving.retrieval.devices.cuda import CudaBackend

    if index == "cagra" and not hasattr(faiss, "GpuIndexCagra"):
        pytest.skip("this FAISS is a build without CAGRA")
    factory, _ = factory_for(VersionSettings(index=index, device=TargetDevice.CUDA), NUM_ITEMS, DIM)
    built = build_index(factory, vectors, device=TargetDevice.CUDA)
    placed = CudaBackend().index(built.index, vectors_ND=vectors, query_counts=(40,))
    slowest = built.ladders(10)[0][-1]
    rows = placed.search(queries[:, 0], 10, params=built.family.parameters(slowest))[1]
    exact = np.argsort(-(queries[:, 0] @ vectors.T), axis=1)[:, :10]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(exact, rows, strict=True)]) > 0.9
