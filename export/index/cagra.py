"""CAGRA: a graph that a GPU builds. It is published as a graph that processors can search as well.

FAISS copies it to an `IndexHNSWCagra`: vectors and one layer of links. A server with `--device cuda` copies
that to its GPU as it is, any other server searches it where it was loaded, from random places. Not verified
on a GPU: see docs/architecture.md.

Legend: N items, D embedding.
"""

import re
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.common.errors import ExportError, UsageError

_faiss: Any = faiss  # its type hints are incomplete
_FACTORY: Final = re.compile(r"CAGRA(\d{1,3})")
_WIDER: Final = 2
"""Links that are looked at for each that is kept."""


def links_of_cagra(factory: str) -> int:
    """Links of a node in a graph such as `CAGRA64`; 0 where the string means something else."""
    found = _FACTORY.fullmatch(factory)
    return int(found[1]) if found else 0


def empty_cagra(embedding_dim: int, num_links: int) -> Any:
    """The empty form in which processors hold such a graph."""
    if num_links < 2 or num_links % 2:
        raise UsageError(f"--index CAGRA{num_links}: an even number of links, at least 2, is needed")
    return _faiss.IndexHNSWCagra(embedding_dim, num_links // 2, faiss.METRIC_INNER_PRODUCT)


def check_cagra() -> None:
    """Say what building such a graph needs and lacks.

    Raises:
        UsageError: this FAISS cannot, or there is no GPU.
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


def build_cagra(vectors_ND: NDArray[np.float32], num_links: int) -> Any:
    """Build the graph on the GPU, and give it in the form that processors hold.

    Args:
        vectors_ND: All items; held on the GPU as a whole.
        num_links: Of a node.

    Raises:
        UsageError: as `check_cagra`.
        ExportError: there are not more items than links.
    """
    check_cagra()
    if len(vectors_ND) <= _WIDER * num_links:
        raise ExportError(
            f"CAGRA{num_links}: more than {_WIDER * num_links} items are needed, there are "
            f"{len(vectors_ND)}. Choose --index flat"
        )
    config = _faiss.GpuIndexCagraConfig()
    config.graph_degree, config.intermediate_graph_degree = num_links, _WIDER * num_links
    resources = _faiss.StandardGpuResources()
    width = vectors_ND.shape[1]
    on_gpu = _faiss.GpuIndexCagra(resources, width, faiss.METRIC_INNER_PRODUCT, config)
    on_gpu.train(np.ascontiguousarray(vectors_ND))
    graph = empty_cagra(width, num_links)
    on_gpu.copyTo(graph)
    return graph
