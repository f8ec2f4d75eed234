"""The index of a version: which one, built, written, tuned, and drawn.

Legend: Q requests, K interests, D embedding, N items.
"""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.layout import INDEX
from re4.bundle.manifest import IndexInfo
from re4.common.errors import ExportError, UsageError
from re4.exporting.index.auto import AUTO, choose
from re4.exporting.index.build import BuiltIndex, build_index, check_factory, memory_need
from re4.exporting.index.devices import Device
from re4.exporting.index.families import GPU_RECIPES, RECIPES
from re4.exporting.index.fill import FILLED
from re4.exporting.index.frontier_plot import FRONTIER, draw_frontier
from re4.exporting.index.index_file import write_index
from re4.exporting.index.memory_estimate import give_back_freed
from re4.exporting.index.tuning import Goal, Queries, tune
from re4.exporting.storage.build_cache import Checkpoints
from re4.exporting.storage.eta import Note, unnoted

MIN_RECALL: Final = 0.6
"""Lowest target: servers refuse an index that finds less than half of the golden candidates."""

_MIN_GOLDEN_RECALL: Final = 0.5
_NAMED: Final = {**RECIPES, **GPU_RECIPES}
_FACTORY: Final = re.compile(r"(Flat|HNSW|IVF|CAGRA)[A-Za-z0-9_,()]*")


def check_request(index: str, goal: Goal) -> None:
    """Refuse what can be refused before any work.

    Raises:
        UsageError: no such index, or a goal out of range.
    """
    if index not in {AUTO, *_NAMED} and not _FACTORY.fullmatch(index):
        raise UsageError(
            f"--index is {index!r}; choose one of {', '.join((AUTO, *_NAMED))}, or a FAISS factory string "
            "such as IVF1024,PQ32x4fs"
        )
    if not MIN_RECALL <= goal.recall <= 1:
        raise UsageError(f"--recall is {goal.recall:g}; choose {MIN_RECALL:g} to 1")
    if goal.num_candidates < 1:
        raise UsageError(f"--num-candidates is {goal.num_candidates}; at least 1 is needed")


def factory_for(
    index: str,
    num_items: int,
    embedding_dim: int,
    memory_limit: int | None = None,
    device: Device = Device.CPU,
) -> tuple[str, str | None]:
    """The factory string of what was asked for, and why, where `auto` left the choice to us.

    Raises:
        UsageError: FAISS does not understand the string, no server loads what it makes, the device cannot
            hold it, or it cannot be built here.
    """

    def fits(kind: str) -> bool:
        need = memory_need(RECIPES[kind](num_items, embedding_dim), num_items, embedding_dim, memory_limit)
        return memory_limit is None or need.build_bytes <= memory_limit

    name, reason = choose(num_items, fits, device) if index == AUTO else (index, None)
    factory = _NAMED[name](num_items, embedding_dim) if name in _NAMED else name
    check_factory(factory, embedding_dim, device)
    return factory, reason


def make_index(
    factory: str,
    vectors_ND: NDArray[np.float32],
    interests_QKD: NDArray[np.float32],
    golden_QKD: NDArray[np.float32],
    goal: Goal,
    folder: Path,
    *,
    num_golden_candidates: int,
    reason: str | None = None,
    stages: Checkpoints | None = None,
    memory_limit: int | None = None,
    device: Device = Device.CPU,
    note: Note = unnoted,
) -> IndexInfo:
    """Build an index, write it into a version's folder, and find the search parameters that reach the goal.

    Args:
        factory: As `factory_for` gives it.
        vectors_ND: Item vectors, finite, C order; may be memory-mapped.
        interests_QKD: Interests of real requests to tune with.
        golden_QKD: Interests of the golden queries.
        goal: What to reach.
        folder: Gets the index, and where there was something to choose, the plot of its frontier.
        num_golden_candidates: Candidates of a golden query.
        reason: Why this index, for the manifest.
        stages: Where finished stages are kept, and found again after an interruption.
        memory_limit: Bytes that building may hold at once; None for no limit.
        device: What it will be searched on.
        note: Is told how far it is.

    Returns:
        What the manifest says about it.

    Raises:
        ExportError: it cannot be built or written, the goal is out of reach, or servers would refuse it.
    """
    built = build_index(
        factory, vectors_ND, stages=stages, memory_limit=memory_limit, device=device, note=note
    )
    note("writing")
    num_bytes = _write(built, folder / INDEX, stages)
    note("tuning")
    tuned = _tuned(interests_QKD, goal)
    if stages is not None and stages.has(tuned):
        info = IndexInfo.model_validate_json(stages.path(tuned).read_bytes())
    else:
        info = tune(built, vectors_ND, interests_QKD, goal, num_bytes=num_bytes, reason=reason)
        if stages is not None:
            with stages.finishing(tuned) as part:
                part.write_text(info.model_dump_json(), encoding="utf-8")
    golden = Queries(golden_QKD, vectors_ND, num_golden_candidates)
    golden_recall = golden.measure(built, info.search_parameters)[0].recall
    if golden_recall < _MIN_GOLDEN_RECALL:
        raise ExportError(
            f"{factory}: as tuned for {goal.num_candidates} candidates it finds {golden_recall:.2%} of the "
            f"golden queries' {golden.num_candidates}, servers ask for {_MIN_GOLDEN_RECALL:.0%}. "
            "Raise --recall or --num-candidates"
        )
    if any(point.search_parameters for point in info.frontier):
        draw_frontier(info, folder / FRONTIER)
    del built
    give_back_freed()  # what comes next reads the index from its file
    return info


def _write(built: BuiltIndex, path: Path, stages: Checkpoints | None) -> int:
    if stages is not None:
        _place(stages.path(FILLED), path)
    else:
        write_index(built.index, path)
    return path.stat().st_size


def _place(source: Path, path: Path) -> None:
    """The same file under another name, or a copy where the file system has no such thing."""
    try:
        path.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, path)


def _tuned(interests_QKD: NDArray[np.float32], goal: Goal) -> str:
    """The stage of having tuned, for these queries and this goal."""
    digest = hashlib.sha256(repr(goal).encode() + np.ascontiguousarray(interests_QKD).tobytes())
    return f"tuned-{digest.hexdigest()[:16]}.json"
