"""Select the live items, write ids and attributes, and print how many bytes of memory that took at most.

usage: join_and_measure.py FEW MANY     two folders of `vectors.npy`, `ids.npy` and `catalogue.parquet`

Prints the peak of this process's own memory while it joined those of MANY, beside what was there before. Few
are joined first, so that libraries and their buffers are there already.
"""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from re4.benchmarks.scale.stage_monitor import StageMonitor
from re4.bundle.attributes.writer import write_attributes
from re4.bundle.ids.id_map import write_item_ids
from re4.exporting.catalogue import attributes, items
from re4.exporting.catalogue.attributes import choose_attributes
from re4.exporting.rebuild import live_items as selecting
from re4.exporting.sources.given_vectors import read_npy
from re4.exporting.sources.version_inputs import VersionInputs
from re4.training.data.catalogue import read_catalogue
from re4.training.data.tables import row_store

for module in (row_store, items, attributes):
    module.CHUNK_ROWS = 16_384
selecting._CHUNK_ROWS = 16_384


def join(folder: Path) -> None:
    given = read_npy(folder / "vectors.npy", folder / "ids.npy")
    num_items = len(given.vectors_ND)
    inputs = VersionInputs(
        where="here",
        vectors_ND=given.vectors_ND,
        items=items.Items(ids=given.item_ids),
        counts_N=np.arange(num_items) % 1000,
        rows_PL=np.arange(100)[:, None],
        lengths_P=np.ones(100, np.int64),
        encoder=SimpleNamespace(),  # type: ignore[arg-type]
        model=SimpleNamespace(),  # type: ignore[arg-type]
        evaluation={},
        lineage={},
    )
    catalogue = read_catalogue(folder / "catalogue.parquet", "item_id", row_store.in_folder(folder))
    live: Any = selecting.select_live_items(inputs, catalogue, folder / "live.npy", folder).inputs
    write_item_ids(folder, live.items.ids.to_write())
    write_attributes(folder, choose_attributes(live.items.columns).columns, len(live.vectors_ND))


few, many = map(Path, sys.argv[1:])
join(few)
watch = StageMonitor()
with watch.running():
    watch.begin("before")
    time.sleep(0.1)
    watch.begin("join")
    join(many)
before, meanwhile = watch.stages
sys.stdout.write(f"{meanwhile.peak_own_bytes - before.peak_own_bytes}\n")
