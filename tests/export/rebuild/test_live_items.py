"""The join of a catalogue with vectors, against the plainest way: dictionaries of ids."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from re4.bundle.attributes import writer as attribute_writing
from re4.bundle.attributes.reader import Attributes
from re4.bundle.attributes.writer import write_attributes
from re4.bundle.ids.id_map import ItemIds, write_item_ids
from re4.bundle.layout import IS_COLD
from re4.common.errors import DataError
from re4.exporting.catalogue import attributes, items
from re4.exporting.catalogue.attributes import choose_attributes
from re4.exporting.catalogue.items import Ids, Items
from re4.exporting.rebuild import live_items as selecting
from re4.exporting.rebuild.live_items import LiveItems, select_live_items
from re4.exporting.sources.version_inputs import VersionInputs
from re4.training.data.catalogue import read_catalogue
from re4.training.data.tables import row_store
from re4.training.data.tables.ids import duplicate_ids
from re4.training.data.tables.row_store import in_folder

NUM_ITEMS, NUM_NEW, DIM = 300, 40, 3


class Inputs:
    """Vectors with ids, and a catalogue in another order, of another kind of id where that can be."""

    def __init__(self, folder: Path, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.folder = folder
        self.kind = "int" if seed % 2 else "string"
        numbers = rng.permutation(NUM_ITEMS + NUM_NEW).tolist()
        ids = [number if seed % 2 else f"α-{number}-漢字" * (1 + number % 3) for number in numbers]
        self.ids = ids[:NUM_ITEMS]
        self.vectors_ND = rng.standard_normal((NUM_ITEMS, DIM)).astype(np.float32)
        self.counts_N = rng.integers(0, 5, NUM_ITEMS)
        live = [ids[place] for place in rng.permutation(NUM_ITEMS + NUM_NEW) if place % 7]
        texts = {"int": {"string": str, "int": int}["string" if seed % 4 == 3 else "int"], "string": str}
        self.catalogue = [texts[self.kind](id_) for id_ in live]
        self.unusable = ["007", "x", "7 "] if seed % 4 == 3 else []
        for text in self.unusable:
            self.catalogue.insert(int(rng.integers(len(live))), text)
        num_rows = len(self.catalogue)
        self.colours = rng.choice(["red", "grün", "", "blue"], num_rows).tolist()
        self.tags = [rng.choice(list("abc"), rng.integers(0, 4)).tolist() or None for _ in range(num_rows)]

    def select(self) -> LiveItems:
        self.folder.mkdir()
        file = self.folder / "catalogue.parquet"
        columns = {"item_id": self.catalogue, "colour": self.colours, "tags": self.tags}
        pl.DataFrame(columns).write_parquet(file)
        ids = pl.Series("item_id", self.ids)
        inputs = VersionInputs(
            where="here",
            vectors_ND=self.vectors_ND,
            items=Items(ids=Ids(NUM_ITEMS, lambda start, stop: ids[start:stop])),
            counts_N=self.counts_N,
            rows_PL=np.arange(NUM_ITEMS)[:, None],
            lengths_P=np.ones(NUM_ITEMS, np.int64),
            encoder=SimpleNamespace(),  # type: ignore[arg-type]
            model=SimpleNamespace(),  # type: ignore[arg-type]
            evaluation={},
            lineage={},
        )
        catalogue = read_catalogue(file, "item_id", in_folder(self.folder))
        return select_live_items(inputs, catalogue, self.folder / "vectors.npy", self.folder)

    def write(self, live: VersionInputs, folder: Path) -> tuple[ItemIds, Attributes]:
        folder.mkdir()
        kind = write_item_ids(folder, live.items.ids.to_write())
        assert kind == self.kind
        columns = choose_attributes(live.items.columns).columns
        num_items = len(live.vectors_ND)
        attributes = write_attributes(folder, columns, num_items)
        return ItemIds.open(folder, kind, num_items), Attributes.open(folder, attributes, num_items)


@pytest.mark.parametrize("seed", range(8))
def test_live_items_equal_the_plainest_way(seed: int, tmp_path: Path) -> None:
    inputs = Inputs(tmp_path / "inputs", seed)
    selected = inputs.select()
    live = selected.inputs
    place_of = {
        (int(id_) if inputs.kind == "int" else id_): place
        for place, id_ in enumerate(inputs.catalogue)
        if id_ not in inputs.unusable
    }
    rows = [row for row, id_ in enumerate(inputs.ids) if id_ in place_of]
    rows.sort(key=lambda row: -inputs.counts_N[row])
    kept = [inputs.ids[row] for row in rows]
    new = sorted((id_ for id_ in place_of if id_ not in inputs.ids), key=place_of.__getitem__)
    assert kept
    assert new
    facts = (selected.num_removed, selected.num_cold, selected.num_unusable)
    assert facts == (NUM_ITEMS - len(kept), len(new), len(inputs.unusable))
    np.testing.assert_array_equal(live.vectors_ND[: len(kept)], inputs.vectors_ND[rows])
    np.testing.assert_array_equal(live.counts_N, [*inputs.counts_N[rows], *[0] * len(new)])
    # Every item had a history of its own.
    assert sorted(live.rows_PL[:, 0]) == list(range(len(kept)))

    ids, attributes = inputs.write(live, tmp_path / "version")
    assert ids.ids(np.arange(len(place_of))) == [*kept, *new]
    found = {name: [set() for _ in place_of] for name in attributes.names}
    for name in attributes.names:
        for code, value in enumerate(attributes[name].values()):
            for row in attributes[name].rows_with([code]).tolist():
                found[name][row].add(value)
    places = [place_of[id_] for id_ in [*kept, *new]]
    assert found == {
        "colour": [{inputs.colours[place]} - {""} for place in places],
        "tags": [set(inputs.tags[place] or ()) for place in places],
        IS_COLD: [{"false"}] * len(kept) + [{"true"}] * len(new),
    }


@pytest.mark.parametrize("seed", [0, 3])
def test_chunks_change_no_byte(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[Any] = []
    for at_once in (None, 13, 64):
        if at_once is not None:
            for module in (row_store, items, attributes):
                monkeypatch.setattr(module, "CHUNK_ROWS", at_once)
            # Not cold: sums are rounded in the order of their parts.
            monkeypatch.setattr(selecting, "_CHUNK_ROWS", at_once)
            monkeypatch.setattr(attribute_writing, "_CHUNK_ITEMS", at_once)
            monkeypatch.setattr(attributes, "_MIN_SEEN_AGAIN", at_once)
        inputs = Inputs(tmp_path / f"inputs {at_once}", seed)
        live = inputs.select().inputs
        written = tmp_path / f"version {at_once}"
        inputs.write(live, written)
        (written / "vectors").write_bytes(live.vectors_ND.tobytes())
        digests.append({path.name: hashlib.sha256(path.read_bytes()).digest() for path in written.iterdir()})
    assert digests[0] == digests[1] == digests[2]


def test_ids_are_distinguished_by_more_than_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a", "b", "a", "ä", "b", "a"]
    chunks = [pl.Series(texts[:3]), pl.Series(texts[3:])]
    found = duplicate_ids(lambda: chunks, len(texts)).rows()
    assert found == [(2, "a", 0), (4, "b", 1), (5, "a", 0)]
    monkeypatch.setattr(pl.Series, "hash", lambda ids: pl.Series(np.zeros(len(ids), np.uint64)))
    assert duplicate_ids(lambda: chunks, len(texts)).rows() == found
    assert duplicate_ids(lambda: [pl.Series(["a", "b"])], 2).is_empty()


def test_rows_that_are_too_many_are_counted_over_all_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_store, "CHUNK_ROWS", 2)
    (tmp_path / "c.csv").write_text("item_id\nx\ny\nz\nx\ny\nx\n")
    with pytest.raises(DataError, match="3 rows too many, the first for 'x'"):
        read_catalogue(tmp_path / "c.csv", "item_id", in_folder(tmp_path))
