"""CPU time of the encoders of published versions: what a model costs a request before the search.

    python -m re4.benchmarks.overhead.encoder_cost BUNDLES [BUNDLES …]

The live version of each bundle directory, by ONNX Runtime on one thread as in a server's worker, for a lone
request and for a batch of 64, histories of full length. The versions take turns; a figure is the median over
the rounds. CPU time hardly changes with other work on the machine. The cost does not depend on the catalogue.
"""

import statistics
import time
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray

from re4.bundle.layout import ENCODER
from re4.bundle.manifest import ModelInfo
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest
from re4.common.console import table
from re4.serving.retrieval.encoder import Encoder

BATCH_SIZES: Final = (1, 64)


def main(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle directories.")],
    num_rounds: Annotated[int, typer.Option(min=1, help="Rounds; a figure is the median over them.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.01, help="CPU seconds of each part of a round.")] = 0.3,
) -> None:
    """Print a row for each version: model, interests, history length, microseconds of CPU time a request."""
    encoders = [_open(folder) for folder in bundles]
    times: dict[tuple[int, int], list[float]] = {}
    for _ in range(num_rounds):
        for number, (encoder, info) in enumerate(encoders):
            for size in BATCH_SIZES:
                vectors_BLD = (
                    np.random.default_rng(0)
                    .standard_normal((size, info.max_history_length, info.embedding_dim))
                    .astype(np.float32)
                )
                lengths_B = np.full(size, info.max_history_length, np.int64)
                times.setdefault((number, size), []).append(
                    _cpu_us(encoder, vectors_BLD, lengths_B, seconds) / size
                )
    rows = []
    for number, (_, info) in enumerate(encoders):
        figures = [f"{statistics.median(times[number, size]):,.1f}" for size in BATCH_SIZES]
        rows.append([info.name, str(info.num_interests), str(info.max_history_length), *figures])
    table("CPU microseconds a request", ["model", "K", "L", "lone", "in a batch of 64"], rows)


def _open(folder: Path) -> tuple[Encoder, ModelInfo]:
    path = live_version(folder)
    info = read_manifest(path).model
    content = (path / ENCODER).read_bytes()
    return Encoder(content, info, max_batch_size=max(BATCH_SIZES), where=str(path)), info


def _cpu_us(
    encoder: Encoder, vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64], seconds: float
) -> float:
    """Return the CPU time of a run, in microseconds."""
    encoder.encode(vectors_BLD, lengths_B)
    started, num_runs = time.process_time(), 0
    while time.process_time() - started < seconds:
        encoder.encode(vectors_BLD, lengths_B)
        num_runs += 1
    return 1e6 * (time.process_time() - started) / num_runs


if __name__ == "__main__":
    typer.run(main)
