"""The verb `re4 bench scale`."""

import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from re4.common import console

if TYPE_CHECKING:
    from collections.abc import Callable

    from re4.benchmarks.scale.watching import Watch
    from re4.benchmarks.synthetic.vectors import VectorSpace
    from re4.bundle.manifest import Manifest
    from re4.exporting.assemble import Assembled
    from re4.exporting.index.tuning import Goal
    from re4.exporting.sources.material import Material

_NUM_HISTORIES = 1000
_NUM_FRESH = 400
"""Requests that had no part in tuning, which the published version is asked."""
_SHARPNESS = 20.0
_ID_LENGTH = 14
_REQUESTS = "requests.npz"


def scale(
    work: Annotated[
        Path, typer.Option(help="Folder for the catalogue and the versions: about 1 KB an item at D = 64.")
    ],
    num_items: Annotated[int, typer.Option(min=1, help="Size of the made-up catalogue.")] = 1_000_000,
    embedding_dim: Annotated[int, typer.Option(min=2, help="D, width of its vectors.")] = 64,
    index: Annotated[str, typer.Option(help="As for re4 export.")] = "auto",
    recall: Annotated[float, typer.Option(help="As for re4 export.")] = 0.95,
    num_candidates: Annotated[int, typer.Option(help="As for re4 export.")] = 100,
    memory_limit: Annotated[str | None, typer.Option(metavar="SIZE", help="As for re4 export.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same catalogue.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for scale.json and scale.md.")] = Path("bench-scale"),
) -> None:
    """Build, tune, publish, judge and read a made-up catalogue: time and memory by stage.

    Vectors, ids, encoder and histories are drawn from the seed. Then come the stages of re4 export, the gates
    that a rebuild would ask, and two processes that load what was published as a server's workers do, ask it,
    and look up ids.

    Example: re4 bench scale --num-items 10000000 --work /data/scale --out results
    """
    from re4.benchmarks.common.machine import describe_machine
    from re4.benchmarks.scale.report import write_report
    from re4.benchmarks.scale.watching import Watch
    from re4.benchmarks.synthetic.vectors import VectorSpace
    from re4.exporting.index.make import check_request
    from re4.exporting.index.memory_estimate import parse_bytes
    from re4.exporting.index.tuning import Goal
    from re4.exporting.rebuild.quality_gates import Bounds, judge
    from re4.exporting.sources.published_version import open_version

    goal = Goal(recall=recall, num_candidates=num_candidates)
    check_request(index, goal)
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    watch = Watch()
    with watch.watching():
        watch.begin("drawing the catalogue")
        space = VectorSpace(num_items=num_items, embedding_dim=embedding_dim, seed=seed)
        assembled, version = _publish(lambda: _draw(space, work), work / "bundles", index, goal, limit, watch)
        watch.begin("verifying every byte")
        path = work / "bundles" / version
        published = open_version(path)
        manifest = published.manifest
        watch.begin("gates of a rebuild, against itself")
        gates = list(judge(assembled, path, published, bounds=Bounds(), goal=goal))
        watch.begin("reading in two processes")
        readers = _read_twice(path, work, goal)
        watch.begin("exact answers to requests that had no part in tuning")
        served_recall = _served_recall(path, manifest, work)
    report = {
        "created_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": shlex.join(["re4", *sys.argv[1:]]),
        "machine": machine,
        "num_items": num_items,
        "embedding_dim": embedding_dim,
        "memory_limit": limit,
        "version": version,
        "index": manifest.index.model_dump(mode="json"),
        "files": {entry.name: entry.num_bytes for entry in manifest.files},
        "stages": [vars(stage) for stage in watch.stages],
        "served_recall": served_recall,
        "num_fresh_requests": _NUM_FRESH,
        "gates": {gate.name: gate.figure for gate in gates},
        "readers": readers,
    }
    write_report(report, out)
    console.print_line(f"report: {out / 'scale.md'}")


def _draw(space: "VectorSpace", work: Path) -> "Material":
    """What is built; requests that have no part in it are written beside."""
    import numpy as np

    from re4.benchmarks.synthetic.catalogue import made_up_material, set_aside
    from re4.training.config import TrainConfig

    whole = made_up_material(
        work,
        space,
        TrainConfig(num_interests=4, embedding_dim=space.embedding_dim, position=False, head=False),
        sharpness={"w.weight": _SHARPNESS},
        id_length=_ID_LENGTH,
        num_histories=_NUM_HISTORIES + _NUM_FRESH,
    )
    material, rows_PL, lengths_P = set_aside(whole, _NUM_FRESH)
    np.savez(work / _REQUESTS, rows_PL=rows_PL, lengths_P=lengths_P)
    return material


def _publish(
    draw: "Callable[[], Material]", bundles: Path, index: str, goal: "Goal", limit: int | None, watch: "Watch"
) -> "tuple[Assembled, str]":
    """As `re4 export` does; what was made, and the version's name."""
    from re4.bundle.publishing.publish import stage_version
    from re4.exporting.assemble import assemble
    from re4.exporting.storage.build_cache import building_room

    bundles.mkdir(exist_ok=True)
    with building_room(bundles) as room, stage_version(bundles) as staged:
        assembled = assemble(
            draw(),
            staged.path,
            index=index,
            goal=goal,
            stage=watch.begin,
            room=room,
            memory_limit=limit,
            note=watch.note,
        )
        watch.begin("checksums and publishing")
        return assembled, assembled.publish(staged)


def _read_twice(path: Path, work: Path, goal: "Goal") -> list[dict[str, Any]]:
    """What a process says that loads the version, and another one while the first still holds it."""
    order = {
        "path": str(path),
        "requests": str(work / _REQUESTS),
        "answers": str(work / "answers.npy"),
        "num_candidates": goal.num_candidates,
    }
    command = [sys.executable, "-m", "re4.benchmarks.scale.reader", json.dumps(order)]
    said: list[dict[str, Any]] = []
    children: list[subprocess.Popen[str]] = []
    try:
        for _ in range(2):
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            children.append(child)
            if child.stdout is not None:
                said.append(json.loads(child.stdout.readline()))
    finally:
        for child in children:
            child.communicate()
    return said


def _served_recall(path: Path, manifest: "Manifest", work: Path) -> float:
    """The share of the exact candidates that the reader was answered with."""
    import numpy as np

    from re4.bundle.array_files import open_array
    from re4.bundle.exact_search import exact_thresholds, merged_recall
    from re4.bundle.layout import ENCODER, VECTORS
    from re4.exporting.assemble import interests_of
    from re4.exporting.encoder.onnx_runner import OnnxEncoder

    shape = (manifest.items.num_items, manifest.model.embedding_dim)
    vectors_ND = open_array(path / VECTORS, "<f4", shape)
    encoder = OnnxEncoder((path / ENCODER).read_bytes())
    with np.load(work / _REQUESTS) as fresh:
        interests_QKD = interests_of(encoder, vectors_ND, fresh["rows_PL"], fresh["lengths_P"])
    found_QM = np.load(work / "answers.npy")
    thresholds_Q = exact_thresholds(interests_QKD, vectors_ND, found_QM.shape[1])
    return merged_recall(interests_QKD, vectors_ND, found_QM, thresholds_Q)
