"""Indexes for GPUs: which classes a GPU can hold, and CAGRA, a graph that a GPU builds.

A version for GPUs is served on CPUs too, slower than a version made for them. FAISS copies a CAGRA graph to
an `IndexHNSWCagra`: vectors and one layer of links. A server with `--device cuda` copies that to its GPU; any
other server searches it where it was loaded, from random entry points. Not verified on a GPU: see
docs/architecture.md.

Legend: N items, D embedding.
"""

import re
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.common.errors import ExportError, UsageError
from re4.exporting.settings import TargetDevice

_faiss: Any = faiss  # its type hints are incomplete
_FACTORY: Final = re.compile(r"CAGRA(\d{1,3})")
_INTERMEDIATE_DEGREES: Final = 2
"""Links considered for each link that is kept."""
_ON_CUDA: Final = frozenset(
    {
        "IndexFlat",
        "IndexFlatIP",
        "IndexIVFFlat",
        "IndexIVFScalarQuantizer",
        "IndexIVFPQ",
        "IndexHNSWFlat",
        "IndexHNSWCagra",
    }
)


def check_device(factory: str, base: Any, device: TargetDevice) -> None:
    """Refuse an index that the device cannot hold.

    Args:
        factory: The factory string.
        base: The index, which may be empty.
        device: The device that servers will search on.

    Raises:
        UsageError: names the index and the alternatives.
    """
    name = type(base).__name__
    if device is TargetDevice.CUDA and name not in _ON_CUDA:
        raise UsageError(
            f"--index {factory}: FAISS has no GPU index for {name}; with --device cuda choose flat, ivf, "
            "ivf-sq8 or cagra, or leave --device cuda out"
        )


def cagra_degree(factory: str) -> int:
    """Return the links of a node in a graph such as `CAGRA64`; 0 where the string is no such graph."""
    found = _FACTORY.fullmatch(factory)
    return int(found[1]) if found else 0


def empty_cagra(embedding_dim: int, degree: int) -> Any:
    """Return the empty index in which CPUs hold such a graph."""
    if degree < 2 or degree % 2:
        raise UsageError(f"--index CAGRA{degree}: an even number of links, at least 2, is needed")
    return _faiss.IndexHNSWCagra(embedding_dim, degree // 2, faiss.METRIC_INNER_PRODUCT)


def check_cagra() -> None:
    """Check that such a graph can be built here.

    Raises:
        UsageError: this FAISS cannot build one, or there is no GPU.
    """
    if not hasattr(faiss, "GpuIndexCagra"):
        lack = "this FAISS cannot build one: the build faiss-gpu-cuvs can"
    elif not _faiss.get_num_gpus():
        lack = "FAISS finds no GPU here, and one has to build it"
    else:
        return
    raise UsageError(
        f"--index cagra: {lack}. Or choose hnsw, of whose vectors servers with --device cuda and that build "
        "make such a graph when they load them"
    )


def build_cagra(vectors_ND: NDArray[np.float32], degree: int) -> Any:
    """Build the graph on the GPU and return it in the form that CPUs hold.

    Args:
        vectors_ND: All items; the GPU holds all of them.
        degree: Links of a node.

    Raises:
        UsageError: as `check_cagra`.
        ExportError: there are not more items than links.
    """
    check_cagra()
    if len(vectors_ND) <= _INTERMEDIATE_DEGREES * degree:
        raise ExportError(
            f"CAGRA{degree}: more than {_INTERMEDIATE_DEGREES * degree} items are needed, there are "
            f"{len(vectors_ND)}. Choose --index flat"
        )
    config = _faiss.GpuIndexCagraConfig()
    config.graph_degree, config.intermediate_graph_degree = degree, _INTERMEDIATE_DEGREES * degree
    resources = _faiss.StandardGpuResources()
    width = vectors_ND.shape[1]
    on_gpu = _faiss.GpuIndexCagra(resources, width, faiss.METRIC_INNER_PRODUCT, config)
    on_gpu.train(np.ascontiguousarray(vectors_ND))
    graph = empty_cagra(width, degree)
    on_gpu.copyTo(graph)
    return graph
