"""Reading a run and judging a version hold few vectors, building leaves no index; a full disk is an error."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_samples import TINY_CONFIG

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.common.files import write_json
from re4.exporting.storage.mapped_vectors import map_for_writing, map_unnamed_file, write_npy_header
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import COUNTS, ITEMS, PROBES, write_weights
from re4.training.run.run_folder import CONFIG

NUM_ITEMS, DIM = 200_000, 64
ALL_BYTES = 4 * NUM_ITEMS * DIM


def peaks_of(*words: str | Path) -> dict[str, int]:
    """The most bytes that a process of its own held while it read vectors."""
    child = Path(__file__).parent / "read_and_measure.py"
    done = subprocess.run(
        [sys.executable, str(child), *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peaks: dict[str, int] = json.loads(done.stdout)
    return peaks


@pytest.fixture(params=["inner", "cosine"])
def large_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run of 200,000 items, not trained."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = replace(TINY_CONFIG, embedding_dim=DIM, scores=request.param).resolve(NUM_ITEMS)
    write_weights(folder, MultiInterestModel(config, NUM_ITEMS))
    pl.DataFrame({"item_id": np.arange(NUM_ITEMS)}).write_parquet(folder / ITEMS)
    np.save(folder / COUNTS, np.ones(NUM_ITEMS, np.int64))
    np.savez(folder / PROBES, rows_QL=np.zeros((2, 4), np.int64), lengths_Q=np.ones(2, np.int64))
    facts = {"dataset": "nowhere", "num_items": NUM_ITEMS, "best_epoch": 0, "config": config.to_json()}
    write_json(folder / CONFIG, facts)
    return folder


def test_a_runs_vectors_are_never_in_memory_as_a_whole(large_run: Path, tmp_path: Path) -> None:
    """They are mapped from its file, and served ones are made of them piece by piece."""
    assert (large_run / "weights.safetensors").stat().st_size > ALL_BYTES
    assert peaks_of("run", large_run, tmp_path)["own"] < ALL_BYTES / 4
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.fixture(scope="module")
def vectors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    VectorSpace(num_items=NUM_ITEMS, embedding_dim=DIM).write_items(path)
    return path


def test_gates_release_the_vectors_that_they_have_compared(vectors_file: Path) -> None:
    assert peaks_of("gate", vectors_file)["resident"] < ALL_BYTES / 4


def test_a_built_index_leaves_no_memory_behind(vectors_file: Path, tmp_path: Path) -> None:
    """The C library would keep what was freed, beside the index that the gates read from its file."""
    seen = peaks_of("index", vectors_file, tmp_path)
    assert seen["own"] > ALL_BYTES
    assert seen["left"] < ALL_BYTES / 4


def test_room_for_vectors_is_there_before_they_are_written(tmp_path: Path) -> None:
    with (tmp_path / "vectors.npy").open("w+b") as file:
        write_npy_header(file, (1000, 5))
        vectors_ND = map_for_writing(file, (1000, 5))
        assert os.fstat(file.fileno()).st_blocks * 512 >= vectors_ND.nbytes
    vectors_ND[7] = np.arange(5)
    found_ND = np.load(tmp_path / "vectors.npy")
    assert found_ND.dtype == np.float32
    np.testing.assert_array_equal(found_ND, vectors_ND)


def test_vectors_without_a_name_leave_nothing(tmp_path: Path) -> None:
    map_unnamed_file(tmp_path, (3, 2))[1] = 5
    assert map_unnamed_file(tmp_path, (0, 2)).shape == (0, 2)
    assert not list(tmp_path.iterdir())
