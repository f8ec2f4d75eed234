"""A writer for `test_live_items_killed.py`: appends batches and prints each acknowledged sequence number."""

import sys
from pathlib import Path

import numpy as np

from re4.bundle.live_items.compaction import compact
from re4.bundle.live_items.records import Evidence, Removal, Upsert
from re4.bundle.live_items.writer import append_changes


def main() -> None:
    bundles, seed, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    rng = np.random.default_rng(seed)
    print("ready", flush=True)
    for number in range(10_000):
        if kind == "compact":
            compact(bundles)
            print(0, flush=True)
            continue
        changes = []
        for _ in range(int(rng.integers(1, 20))):
            id_ = f"item-{rng.integers(50)}"
            what = rng.random()
            if what < 0.7:
                changes.append(Upsert(id_, {"batch": (f"{seed}-{number}",)}))
            elif what < 0.85:
                changes.append(Removal(id_))
            else:
                changes.append(Evidence(id_, "a" * 64, 1.0, np.ones(4, np.float32)))
        print(append_changes(bundles, changes), len(changes), flush=True)


main()
