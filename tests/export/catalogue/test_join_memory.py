"""Joining ids with a catalogue takes a few numbers an item, and its temporary files go with the job."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from re4.common.errors import DataError
from re4.training.data.catalogue import read_catalogue
from re4.training.data.tables.row_store import in_folder

FEW, MANY = 60_000, 300_000
MIB = 1 << 20


def write_inputs(folder: Path, num_items: int) -> Path:
    """Vectors, ids, and a catalogue that lacks some of them and has as many more, in another order."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    ids = np.char.mod("item-%09d", np.arange(num_items + 1000))
    np.save(folder / "vectors.npy", rng.standard_normal((num_items, 4), np.float32))
    np.save(folder / "ids.npy", ids[:num_items])
    live = np.append(np.arange(100), 100 + rng.permutation(num_items + 900)[: num_items - 100])
    tags = [pl.Series(live % number) for number in (5, 7)]
    pl.DataFrame(
        {
            "item_id": ids[live],
            "brand": np.char.mod("brand %03d", live % 500),
            "tags": pl.select(pl.concat_list(tags)).to_series(),
        }
    ).write_parquet(folder / "catalogue.parquet", row_group_size=16_384)
    return folder


def test_a_join_holds_no_more_than_40_bytes_an_item(tmp_path: Path) -> None:
    """Beside buffers. Ids, brands and tags in memory take more than 270."""
    folders = [write_inputs(tmp_path / str(num_items), num_items) for num_items in (FEW, MANY)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "join_and_measure.py"), *map(str, folders)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "POLARS_MAX_THREADS": "1",  # each has buffers of its own
            "MALLOC_MMAP_THRESHOLD_": str(MIB),  # freed memory does not stay in the heap
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40 * MANY + 40 * MIB


def test_a_full_disk_is_not_the_catalogues_fault(tmp_path: Path) -> None:
    texts = np.random.default_rng(0).bytes(1 << 19).hex()
    pl.DataFrame({"item_id": range(16), "text": [texts[row::16] for row in range(16)]}).write_parquet(
        tmp_path / "catalogue.parquet"
    )
    (tmp_path / "scratch").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(DataError, match=r"scratch: no room for a copy .*File too large.*make room"):
            read_catalogue(tmp_path / "catalogue.parquet", "item_id", in_folder(tmp_path / "scratch"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
