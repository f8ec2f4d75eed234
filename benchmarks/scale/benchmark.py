"""A synthetic catalogue of any size, built, tuned, published, checked and read."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from re4.benchmarks.common.child_process import child_process
from re4.benchmarks.common.machine import describe_machine
from re4.benchmarks.common.report import command_line, write_report
from re4.benchmarks.scale import reader
from re4.benchmarks.scale.options import ScaleOptions
from re4.benchmarks.scale.report import render_markdown
from re4.benchmarks.scale.stage_monitor import StageMonitor
from re4.benchmarks.synthetic.bundle import hold_out, synthetic_inputs
from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.bundle.array_files import open_array
from re4.bundle.layout import ENCODER, VECTORS
from re4.bundle.manifest import Manifest
from re4.bundle.publishing.publish import stage_version
from re4.bundle.scoring.exact_search import exact_thresholds, merged_recall
from re4.exporting.assemble import AssembledVersion, assemble, interests_of
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.index.index_names import check_index_name
from re4.exporting.rebuild.quality_gates import run_gates
from re4.exporting.rebuild.settings import Bounds
from re4.exporting.settings import VersionSettings
from re4.exporting.sources.published_version import open_version
from re4.exporting.sources.version_inputs import VersionInputs
from re4.exporting.storage.build_cache import BuildCache
from re4.training.config import TrainConfig

_NUM_HISTORIES: Final = 1000
_NUM_FRESH: Final = 400
"""Requests that had no part in tuning, sent to the published version."""
_READER_TIMEOUT_S: Final = 3600.0
_SHARPNESS: Final = 20.0
_ID_LENGTH: Final = 14
_REQUESTS: Final = "requests.npz"


def run(options: ScaleOptions) -> dict[str, Any]:
    """Do it all, write the report's files, and return the report."""
    settings = VersionSettings(
        index=options.index,
        recall=options.recall,
        num_candidates=options.num_candidates,
        memory_limit=options.memory_limit,
    )
    check_index_name(settings.index)
    work = options.work
    for folder in (work, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    machine, monitor = describe_machine(), StageMonitor()
    with monitor.running():
        assembled, path = _publish(options, settings, monitor)
        monitor.begin("verifying every byte")
        published = open_version(path)
        manifest = published.manifest
        monitor.begin("gates of a rebuild, against itself")
        gates = list(run_gates(assembled, path, published, bounds=Bounds(), target=settings.target))
        monitor.begin("reading in two processes")
        readers = _read_twice(path, work, settings.num_candidates)
        monitor.begin("exact answers to requests that had no part in tuning")
        served_recall = _served_recall(path, manifest, work)
    report = {
        "created_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": command_line(),
        "machine": machine,
        "num_items": options.num_items,
        "embedding_dim": options.embedding_dim,
        "memory_limit": settings.memory_limit_bytes,
        "version": path.name,
        "index": manifest.index.model_dump(mode="json"),
        "files": {entry.name: entry.num_bytes for entry in manifest.files},
        "stages": [vars(stage) for stage in monitor.stages],
        "served_recall": served_recall,
        "num_fresh_requests": _NUM_FRESH,
        "gates": {gate.name: gate.figure for gate in gates},
        "readers": readers,
    }
    write_report(options.out, {"scale.json": report, "scale.md": render_markdown(report)})
    return report


def _inputs(options: ScaleOptions) -> VersionInputs:
    """Return the catalogue to build; further requests are written into the work folder."""
    space = VectorSpace(num_items=options.num_items, embedding_dim=options.embedding_dim, seed=options.seed)
    whole = synthetic_inputs(
        options.work,
        space,
        TrainConfig(num_interests=4, embedding_dim=space.embedding_dim, position=False, head=False).resolve(
            space.num_items
        ),
        sharpness={"w.weight": _SHARPNESS},
        id_length=_ID_LENGTH,
        num_histories=_NUM_HISTORIES + _NUM_FRESH,
    )
    inputs, rows_PL, lengths_P = hold_out(whole, _NUM_FRESH)
    np.savez(options.work / _REQUESTS, rows_PL=rows_PL, lengths_P=lengths_P)
    return inputs


def _publish(
    options: ScaleOptions, settings: VersionSettings, monitor: StageMonitor
) -> tuple[AssembledVersion, Path]:
    """Publish as `re4 export` does; return what was assembled, and the version's folder."""
    monitor.begin("drawing the catalogue")
    bundles = options.work / "bundles"
    bundles.mkdir(exist_ok=True)
    with BuildCache(bundles) as cache, stage_version(bundles) as staged:
        assembled = assemble(
            _inputs(options),
            staged.path,
            settings,
            begin_stage=monitor.begin,
            cache=cache,
            on_progress=monitor.note,
        )
        monitor.begin("checksums and publishing")
        return assembled, bundles / assembled.publish(staged)


def _read_twice(path: Path, work: Path, num_candidates: int) -> list[dict[str, Any]]:
    """Return the reports of a process that loads the version, and of another one while the first holds it."""
    arguments = (path, work / _REQUESTS, work / "answers.npy", num_candidates)
    with child_process("the first reader", reader.main, *arguments) as first:
        report = first.receive(_READER_TIMEOUT_S)
        with child_process("the second reader", reader.main, *arguments) as second:
            return [report, second.receive(_READER_TIMEOUT_S)]


def _served_recall(path: Path, manifest: Manifest, work: Path) -> float:
    """Return the share of the exact candidates in the reader's answers."""
    shape = (manifest.items.num_items, manifest.model.embedding_dim)
    vectors_ND = open_array(path / VECTORS, "<f4", shape)
    encoder = OnnxEncoder((path / ENCODER).read_bytes())
    with np.load(work / _REQUESTS) as fresh:
        interests_QKD = interests_of(encoder, vectors_ND, fresh["rows_PL"], fresh["lengths_P"])
    found_QM = np.load(work / "answers.npy")
    thresholds_Q = exact_thresholds(interests_QKD, vectors_ND, found_QM.shape[1])
    return merged_recall(interests_QKD, vectors_ND, found_QM, thresholds_Q)
