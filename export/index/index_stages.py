"""The index of a version: factory string chosen, index built, written, tuned, and its frontier drawn.

Legend: Q requests, K interests, D embedding, N items.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attributes
from re4.bundle.golden import GoldenQueries
from re4.bundle.layout import INDEX, VECTORS
from re4.bundle.manifest import IndexInfo
from re4.bundle.milvus.address import is_milvus, parse_index
from re4.bundle.milvus.collections import NewCollection
from re4.bundle.safe_files import open_folder, open_regular, sha256_of
from re4.common.errors import ExportError
from re4.exporting.index.build import build_index, check_factory, memory_of_factory
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.index.fill import FILLED
from re4.exporting.index.frontier_plot import FRONTIER, draw_frontier
from re4.exporting.index.index_file import write_index
from re4.exporting.index.index_names import NAMED, RECIPES, choose_index
from re4.exporting.index.memory_estimate import release_freed_memory
from re4.exporting.index.milvus_build import build_collection, bytes_of_index, index_type_for
from re4.exporting.index.tuning import Queries, tune
from re4.exporting.settings import AUTO, RecallTarget, TargetDevice, VersionSettings
from re4.exporting.storage.build_cache import Checkpoints
from re4.exporting.storage.eta import OnProgress, no_progress

_MIN_GOLDEN_RECALL: Final = 0.5
_MILVUS: Final = "Milvus "


def factory_for(settings: VersionSettings, num_items: int, embedding_dim: int) -> tuple[str, str | None]:
    """Return the factory string for `settings.index`, or a collection's type; for `auto`, also the reason.

    Raises:
        UsageError: FAISS does not understand the string, no server loads such an index, the device cannot
            hold it, or it cannot be built here.
    """
    limit = settings.memory_limit_bytes

    def fits(kind: str) -> bool:
        memory = memory_of_factory(RECIPES[kind](num_items, embedding_dim), num_items, embedding_dim, limit)
        return limit is None or memory.build_bytes <= limit

    name, reason = settings.index, None
    if is_milvus(name):
        index_type, reason = index_type_for(parse_index(name)[1], num_items)
        return f"{_MILVUS}{index_type}", reason
    if name == AUTO:
        name, reason = choose_index(num_items, fits, settings.device)
    factory = NAMED[name](num_items, embedding_dim) if name in NAMED else name
    check_factory(factory, embedding_dim, settings.device)
    return factory, reason


def make_index(
    factory: str,
    vectors_ND: NDArray[np.float32],
    interests_QKD: NDArray[np.float32],
    golden: GoldenQueries,
    settings: VersionSettings,
    folder: Path,
    *,
    reason: str | None = None,
    collection: NewCollection | None = None,
    attributes: Attributes | None = None,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress = no_progress,
) -> IndexInfo:
    """Build an index, write it into a version's folder or a collection, and find the search parameters.

    Args:
        factory: The factory string, from `factory_for`.
        vectors_ND: Item vectors, finite, C order; may be memory-mapped.
        interests_QKD: Interests of real requests to tune with.
        golden: The golden queries.
        settings: Recall target, memory limit and device.
        folder: Gets the index, and where there was something to choose, the plot of its frontier.
        reason: The reason for this index, for the manifest.
        collection: Gets the index; None for an index in a file.
        attributes: By which a collection can be filtered.
        checkpoints: Keeps finished stages and gives them back after an interruption.
        on_progress: Called with the progress.

    Returns:
        The manifest's facts about the index.

    Raises:
        ExportError: it cannot be built or written, the target is out of reach, or servers would refuse it.
    """
    target = settings.target
    if collection is not None:
        index_type = factory.removeprefix(_MILVUS)
        built = build_collection(
            collection,
            index_type,
            vectors_ND,
            Attributes([]) if attributes is None else attributes,
            _sha256(folder / VECTORS),
            on_progress,
        )
        num_bytes = bytes_of_index(index_type, *vectors_ND.shape)
    else:
        built = build_index(
            factory,
            vectors_ND,
            checkpoints=checkpoints,
            memory_limit=settings.memory_limit_bytes,
            device=settings.device,
            on_progress=on_progress,
        )
        on_progress("writing")
        num_bytes = _write(built, folder / INDEX, checkpoints)
    on_progress("tuning")
    tuned = _tuned_stage(interests_QKD, target)
    if checkpoints is not None and checkpoints.has(tuned):
        info = IndexInfo.model_validate_json(checkpoints.path(tuned).read_bytes())
    else:
        info = tune(
            built,
            vectors_ND,
            interests_QKD,
            target,
            num_bytes=num_bytes,
            reason=reason,
            shares_budget=settings.device is TargetDevice.CPU,
        )
        if checkpoints is not None:
            with checkpoints.finishing(tuned) as part:
                part.write_text(info.model_dump_json(), encoding="utf-8")
    queries = Queries(golden.interests_QKD, vectors_ND, golden.candidate_rows_QM.shape[1])
    golden_recall = queries.measure(built, info.search_parameters)[0].recall
    if golden_recall < _MIN_GOLDEN_RECALL:
        raise ExportError(
            f"{factory}: as tuned for {target.num_candidates} candidates it finds {golden_recall:.2%} of the "
            f"golden queries' {queries.num_candidates}, servers require {_MIN_GOLDEN_RECALL:.0%}. "
            "Raise --recall or --num-candidates"
        )
    if any(point.search_parameters for point in info.frontier):
        draw_frontier(info, folder / FRONTIER)
    del built
    release_freed_memory()  # what comes next reads the index from its file
    return info


def _sha256(path: Path) -> str:
    with (
        open_folder(path.parent) as folder,
        open_regular(path.name, folder=folder, where=str(path)) as descriptor,
    ):
        return sha256_of(descriptor)[1]


def _write(built: BuiltIndex, path: Path, checkpoints: Checkpoints | None) -> int:
    if checkpoints is not None:
        _link_or_copy(checkpoints.path(FILLED), path)
    else:
        write_index(built.index, path)
    return path.stat().st_size


def _link_or_copy(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        path.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, path)


def _tuned_stage(interests_QKD: NDArray[np.float32], target: RecallTarget) -> str:
    """Return the name of the stage of tuning with these queries and this target."""
    digest = hashlib.sha256(repr(target).encode() + np.ascontiguousarray(interests_QKD).tobytes())
    return f"tuned-{digest.hexdigest()[:16]}.json"
