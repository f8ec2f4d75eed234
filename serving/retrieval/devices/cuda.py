"""One NVIDIA GPU: encoder and index on it, both confined to one thread.

That thread is also the server's worker thread, so that a search changes no thread. The copy of a
new version to the GPU runs in it too, between two batches. A GPU index supports neither selectors
nor very many results; for those the loaded CPU index is searched, which is kept beside it.

Not verified on a GPU: see docs/architecture.md.

Legend: B batch, L history length, Q query rows, S results per query, K interests, D embedding.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.common.errors import BundleMismatchError, ServerError
from re4.common.onnx_runtime import onnxruntime
from re4.serving.retrieval.devices.thread_confinement import ResourceThread, ThreadConfined
from re4.serving.retrieval.encoder import CPU_PROVIDERS, Encoder

CUDA_PROVIDERS: Final = ("CUDAExecutionProvider", *CPU_PROVIDERS)
_PROVIDER: Final = CUDA_PROVIDERS[0]
MAX_GPU_RESULTS: Final = 2048
"""Most results that FAISS selects on a GPU."""

_DEVICE: Final = 0
_WARM_RESULTS: Final = 128
_PLACEABLE: Final = ("IndexFlat", "IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ")
_INSTALL: Final = (
    "install the extra gpu (make setup EXTRA=gpu, or pip install 're4-retrieval[gpu]' after removing "
    "faiss-cpu and onnxruntime), or serve with --device cpu"
)
_faiss: Any = faiss  # its type hints are incomplete


class CudaBackend:
    """The GPU: one thread makes, uses and destroys encoder and index. See `DeviceBackend`."""

    name = "cuda"

    def __init__(self) -> None:
        """Open the GPU.

        Raises:
            ServerError: there is none, or FAISS or ONNX Runtime is a build without GPU support.
        """
        check_cuda()
        self._thread = ResourceThread("gpu-thread")
        self._resources = ThreadConfined(self._thread, lambda: _faiss.StandardGpuResources())

    @property
    def worker_thread(self) -> ThreadPoolExecutor:
        """The thread to which everything on the GPU is confined."""
        return self._thread.executor

    def encoder(self, load: Callable[[tuple[str, ...]], Encoder]) -> "ConfinedEncoder":
        """Return the encoder, loaded with the CUDA provider."""
        return ConfinedEncoder(ThreadConfined(self._thread, lambda: load(CUDA_PROVIDERS)))

    def index(
        self, index: Any, *, vectors_ND: NDArray[np.float32], query_counts: tuple[int, ...]
    ) -> "GpuIndex":
        """Return a copy of the index on the GPU, searched once at every number of query rows."""
        confined = self._resources.use(
            lambda resources: ThreadConfined(self._thread, lambda: _copy(resources, index, vectors_ND))
        )
        gpu_index = GpuIndex(confined, index, query_counts)
        gpu_index.warm()
        return gpu_index


class ConfinedEncoder:
    """An encoder that one thread runs."""

    def __init__(self, encoder: ThreadConfined[Encoder]) -> None:
        self._encoder = encoder

    def encode(
        self, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run `Encoder.encode`."""
        return self._encoder.use(lambda encoder: encoder.encode(history_vectors_BLD, lengths_B))

    def warm(self) -> None:
        """Run `Encoder.warm`."""
        self._encoder.use(lambda encoder: encoder.warm())


class GpuIndex:
    """An index on the GPU, with the CPU index of which it is a copy."""

    def __init__(self, index: ThreadConfined[Any], cpu_index: Any, query_counts: tuple[int, ...]) -> None:
        self._index = index
        self._cpu_index = cpu_index
        self._query_counts = query_counts
        self.ntotal = cpu_index.ntotal

    def search(
        self, queries_QD: NDArray[np.float32], num_results: int, *, params: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search; queries are padded to a number that was warmed up."""
        if num_results > MAX_GPU_RESULTS or getattr(params, "sel", None) is not None:
            scores_QS, rows_QS = self._cpu_index.search(queries_QD, num_results, params=params)
            return scores_QS, rows_QS
        num_queries = len(queries_QD)
        padded = next((count for count in self._query_counts if count >= num_queries), num_queries)
        padded_QD = np.zeros((padded, queries_QD.shape[1]), np.float32)
        padded_QD[:num_queries] = queries_QD
        scores_QS, rows_QS = self._index.use(
            lambda index: index.search(padded_QD, num_results, params=_for_gpu(index, params))
        )
        return scores_QS[:num_queries], rows_QS[:num_queries]

    def warm(self) -> None:
        """Search once at every number of queries."""
        for count in self._query_counts:
            self.search(np.zeros((count, self._cpu_index.d), np.float32), min(_WARM_RESULTS, self.ntotal))


def check_cuda() -> None:
    """Check that the GPU and builds for it are there, before anything is loaded.

    Raises:
        ServerError: names the missing part and what to install.
    """
    if not hasattr(faiss, "StandardGpuResources"):
        raise ServerError(f"--device cuda: this FAISS is a build without GPU support: {_INSTALL}")
    providers = onnxruntime.get_available_providers()
    if _PROVIDER not in providers:
        raise ServerError(
            f"--device cuda: this ONNX Runtime has no {_PROVIDER}, but {', '.join(providers)}: {_INSTALL}"
        )
    if not _faiss.get_num_gpus():
        raise ServerError(
            "--device cuda: FAISS finds no GPU here. Does nvidia-smi list one, and is it visible to this "
            "process (CUDA_VISIBLE_DEVICES)? Or serve with --device cpu"
        )


def _copy(resources: Any, index: Any, vectors_ND: NDArray[np.float32]) -> Any:
    """Copy an index to the GPU. CAGRA rebuilds a graph that it did not build."""
    if isinstance(index, faiss.IndexHNSW) and hasattr(faiss, "GpuIndexCagra"):
        config = _faiss.GpuIndexCagraConfig()
        config.device = _DEVICE
        graph = _faiss.GpuIndexCagra(resources, index.d, faiss.METRIC_INNER_PRODUCT, config)
        if isinstance(index, _faiss.IndexHNSWCagra):
            graph.copyFrom(index)
        else:
            graph.train(np.ascontiguousarray(vectors_ND))
        return graph
    name = type(index).__name__
    if not name.startswith(_PLACEABLE) or "FastScan" in name:
        raise BundleMismatchError(
            f"--device cuda: FAISS has no GPU index for {name}. Export with --device cuda (graphs need the "
            "build faiss-gpu-cuvs on servers, too), or serve with --device cpu"
        )
    # Centroids that were not built for GPUs are searched on the CPU
    # (`export/index/coarse_quantizer.py`).
    options = _faiss.GpuClonerOptions()
    options.allowCpuCoarseQuantizer = True
    return _faiss.index_cpu_to_gpu(resources, _DEVICE, index, options)


def _for_gpu(index: Any, params: Any) -> Any:
    """Return the search parameters in the form that the GPU index takes."""
    if not isinstance(params, _faiss.SearchParametersHNSW):
        return params
    return _faiss.SearchParametersCagra(itopk_size=params.efSearch)
