"""One NVIDIA GPU: encoder and index on it, both owned by one thread for life.

That thread is the compute lane, so that a search needs no other. A hot swap's copy to the GPU runs in the
same thread, between two batches. What a GPU index cannot do (selectors, very many results) the loaded index
does, which stays beside it.

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
from re4.serving.retrieval.devices.owner import Owned, OwnerThread
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


class OnCuda:
    """See `Placement`."""

    name = "cuda"

    def __init__(self) -> None:
        """Take the GPU.

        Raises:
            ServerError: there is none, or FAISS or ONNX Runtime is a build without GPU support.
        """
        check_cuda()
        self._thread = OwnerThread("device-lane")
        self._resources = Owned(self._thread, lambda: _faiss.StandardGpuResources())

    @property
    def lane(self) -> ThreadPoolExecutor:
        """The thread that owns all that is on the GPU."""
        return self._thread.executor

    def encoder(self, load: Callable[[tuple[str, ...]], Encoder]) -> "OwnedEncoder":
        """The encoder, loaded with the CUDA provider by the thread that owns it."""
        return OwnedEncoder(Owned(self._thread, lambda: load(CUDA_PROVIDERS)))

    def index(
        self, index: Any, *, vectors_ND: NDArray[np.float32], query_counts: tuple[int, ...]
    ) -> "PlacedIndex":
        """A copy of the index on the GPU, searched once at every number of query rows."""
        owned = self._resources.use(
            lambda resources: Owned(self._thread, lambda: _copy(resources, index, vectors_ND))
        )
        placed = PlacedIndex(owned, index, query_counts)
        placed.warm()
        return placed


class OwnedEncoder:
    """An encoder that its own thread runs."""

    def __init__(self, owned: Owned[Encoder]) -> None:
        self._owned = owned

    def encode(
        self, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `Encoder.encode`."""
        return self._owned.use(lambda encoder: encoder.encode(history_vectors_BLD, lengths_B))

    def warm(self) -> None:
        """As `Encoder.warm`."""
        self._owned.use(lambda encoder: encoder.warm())


class PlacedIndex:
    """An index on the GPU, with the one it was copied from beside it."""

    def __init__(self, owned: Owned[Any], beside: Any, query_counts: tuple[int, ...]) -> None:
        self._owned = owned
        self._beside = beside
        self._query_counts = query_counts
        self.ntotal = beside.ntotal

    def search(
        self, queries_QD: NDArray[np.float32], num_results: int, *, params: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search; query rows are padded to a number that was warmed up."""
        if num_results > MAX_GPU_RESULTS or getattr(params, "sel", None) is not None:
            scores_QS, rows_QS = self._beside.search(queries_QD, num_results, params=params)
            return scores_QS, rows_QS
        num_queries = len(queries_QD)
        padded = next((count for count in self._query_counts if count >= num_queries), num_queries)
        padded_QD = np.zeros((padded, queries_QD.shape[1]), np.float32)
        padded_QD[:num_queries] = queries_QD
        scores_QS, rows_QS = self._owned.use(
            lambda index: index.search(padded_QD, num_results, params=_for_gpu(index, params))
        )
        return scores_QS[:num_queries], rows_QS[:num_queries]

    def warm(self) -> None:
        """Search once at every number of query rows."""
        for count in self._query_counts:
            self.search(np.zeros((count, self._beside.d), np.float32), min(_WARM_RESULTS, self.ntotal))


def check_cuda() -> None:
    """Say what is missing, before anything is loaded.

    Raises:
        ServerError: names it, and what to install.
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
    """The index on the GPU: a graph that CAGRA made as it is, another one as a CAGRA graph of its vectors."""
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
    # Lists that were not made for GPUs are chosen by a processor (`export/index/coarse_quantizer.py`).
    options = _faiss.GpuClonerOptions()
    options.allowCpuCoarseQuantizer = True
    return _faiss.index_cpu_to_gpu(resources, _DEVICE, index, options)


def _for_gpu(index: Any, params: Any) -> Any:
    """The search parameters in the form that the GPU's index takes."""
    if not isinstance(params, _faiss.SearchParametersHNSW):
        return params
    return _faiss.SearchParametersCagra(itopk_size=params.efSearch)
