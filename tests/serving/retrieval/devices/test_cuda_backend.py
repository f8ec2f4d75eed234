"""`--device cuda` with a fake GPU: one thread over swaps, warmed-up sizes, clear errors without a GPU."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from fake_gpu import FakeGpu, gpu
from running_server import RunningServer
from small_bundles import MAX_HISTORY, NUM_INTERESTS, SmallVersion

from re4 import RetrievalClient, Retriever
from re4.bundle.verify import verify_version
from re4.common.errors import BundleMismatchError, ServerError
from re4.serving.batching.batcher import Batcher
from re4.serving.batching.queue import BatchGroup
from re4.serving.retrieval.devices import cuda
from re4.serving.retrieval.devices.cuda import MAX_GPU_RESULTS, CudaBackend
from re4.serving.retrieval.pipeline import Query
from re4.serving.settings import ServerSettings
from re4.serving.versions.snapshot import Snapshot, load_snapshot

__all__ = ["gpu"]


def load(version: SmallVersion, bundles: Path, backend: CudaBackend | None) -> Snapshot:
    path = bundles / version.publish(bundles)
    return load_snapshot(path, verify_version(path), max_batch_size=4, backend=backend)


def queries(num_queries: int, **options: Any) -> list[Query]:
    rows = np.random.default_rng(0).integers(60, size=(num_queries, MAX_HISTORY))
    return [Query(history_rows_L=row, num_candidates=10, **options) for row in rows]


def test_answers_are_those_of_the_cpu(gpu: FakeGpu, tmp_path: Path) -> None:
    on_gpu = load(SmallVersion(), tmp_path, CudaBackend()).pipeline.run(queries(3))
    on_cpu = load(SmallVersion(), tmp_path, None).pipeline.run(queries(3))
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(ours.merged.rows_M, theirs.merged.rows_M)


def test_one_thread_makes_searches_and_destroys_over_swaps_under_load(gpu: FakeGpu, tmp_path: Path) -> None:
    backend = CudaBackend()
    live = [load(SmallVersion(), tmp_path, backend)]

    async def main() -> None:
        batcher: Batcher[Query, Any] = Batcher(
            lambda batch: live[0].pipeline.run(batch),
            max_batch_size=4,
            max_wait_ms=1e9,
            group_of=lambda _: BatchGroup(version=0, relative_cost=1),
            on_thread_start=lambda: None,
            worker_thread=backend.worker_thread,
        )

        async def ask() -> None:
            for query in queries(20):
                assert len((await batcher.submit(query))[0].merged.rows_M) == 10

        asking = asyncio.gather(*(ask() for _ in range(3)))
        for seed in range(1, 4):
            live[0] = await asyncio.to_thread(load, SmallVersion(seed=seed), tmp_path, backend)
        await asking
        live.clear()
        for _ in range(4):
            assert await asyncio.to_thread(gpu.destroyed.acquire, timeout=30)
        batcher.close()

    asyncio.run(main())
    assert gpu.num_alive == 0
    assert all(len(threads) == 1 for threads in gpu.threads.values())
    assert len(gpu.all_threads) == 1
    assert threading.get_ident() not in gpu.all_threads


def test_every_number_of_query_rows_was_warmed_up(gpu: FakeGpu, tmp_path: Path) -> None:
    snapshot = load(SmallVersion(), tmp_path, CudaBackend())
    warmed = set(gpu.query_counts)
    assert warmed == {size * NUM_INTERESTS for size in (1, 2, 4)}
    for num_queries in (1, 2, 3, 4):
        snapshot.pipeline.run(queries(num_queries))
    assert set(gpu.query_counts) == warmed


def test_the_cpu_index_is_searched_where_a_gpu_index_cannot_be(gpu: FakeGpu, tmp_path: Path) -> None:
    backend = CudaBackend()
    index = faiss.IndexFlatIP(8)
    index.add(np.random.default_rng(0).standard_normal((MAX_GPU_RESULTS + 10, 8)).astype(np.float32))
    placed = backend.index(index, vectors_ND=np.empty((0, 8), np.float32), query_counts=(4,))
    gpu.query_counts.clear()
    wanted = np.ones((1, 8), np.float32)
    assert placed.search(wanted, MAX_GPU_RESULTS + 1)[1].shape == (1, MAX_GPU_RESULTS + 1)
    few = faiss.SearchParameters(sel=faiss.IDSelectorRange(5, 7))
    assert set(placed.search(wanted, 3, params=few)[1][0]) == {-1, 5, 6}
    assert not gpu.query_counts


def test_a_graph_that_cagra_made_is_copied_and_another_one_is_built_anew(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class FakeCagra:
        def __init__(self, *_: Any) -> None:
            pass

        def copyFrom(self, graph: Any) -> None:
            done.append("copied")

        def train(self, vectors: np.ndarray) -> None:
            done.append(f"built of {len(vectors)}")

        def search(self, queries: np.ndarray, k: int, *, params: Any = None) -> Any:
            return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)

    monkeypatch.setattr(faiss, "GpuIndexCagra", FakeCagra, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexCagraConfig", SimpleNamespace, raising=False)
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    made = faiss.IndexHNSWCagra(8, 8, faiss.METRIC_INNER_PRODUCT)
    grown = faiss.IndexHNSWFlat(8, 8, faiss.METRIC_INNER_PRODUCT)
    for graph in (made, grown):
        graph.add(vectors)
        CudaBackend().index(graph, vectors_ND=vectors, query_counts=(1,))
    assert done == ["copied", "built of 200"]


def test_an_index_without_a_gpu_form_is_rejected(gpu: FakeGpu) -> None:
    index = faiss.index_factory(8, "PQ4x4fs", faiss.METRIC_INNER_PRODUCT)
    with pytest.raises(
        BundleMismatchError, match=r"no GPU index for IndexPQFastScan.*Export with --device cuda"
    ):
        CudaBackend().index(index, vectors_ND=np.empty((0, 8), np.float32), query_counts=(1,))


def test_each_missing_part_is_named(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(ServerError, match="FAISS finds no GPU here"):
        CudaBackend()
    monkeypatch.setattr(cuda.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ServerError, match=r"no CUDAExecutionProvider, but CPU.*extra gpu"):
        CudaBackend()
    monkeypatch.delattr(faiss, "StandardGpuResources")
    with pytest.raises(ServerError, match=r"FAISS is a build without GPU support.*extra gpu"):
        CudaBackend()


def test_a_gpu_is_not_shared_out_by_default() -> None:
    settings = ServerSettings.gather({"device": "cuda"}, file=None, environment={})
    assert settings.num_processes == 1
    assert (
        ServerSettings.gather({"device": "cuda", "num_processes": 3}, file=None, environment={}).num_processes
        == 3
    )


def test_a_retriever_answers_from_a_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    version = SmallVersion()
    version.publish(tmp_path)
    with Retriever.open(tmp_path, device="cuda") as retriever:
        found = retriever.retrieve([version.ids[row] for row in (3, 4, 5)], 10)
    assert found.item_ids == [version.ids[row] for row in version.best([3, 4, 5], 10)]
    assert len(gpu.threads["search"]) == 1
    assert threading.get_ident() not in gpu.all_threads


@pytest.mark.gpu
def test_a_server_answers_from_a_gpu(tmp_path: Path) -> None:
    version = SmallVersion()
    version.publish(tmp_path)
    with RunningServer(tmp_path, "--device", "cuda") as server, RetrievalClient(server.address) as client:
        found = client.retrieve([version.ids[row] for row in (3, 4, 5)], 10)
    assert list(found.item_ids) == [version.ids[row] for row in version.best([3, 4, 5], 10)]
