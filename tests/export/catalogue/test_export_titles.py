"""The column of titles that goes into a version."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_samples import FakeRun, publish_run

from re4.bundle.titles import Titles
from re4.common.errors import ExportError
from re4.exporting.catalogue.items import columns_of
from re4.exporting.catalogue.titles import find_titles, titles_of

ITEMS = pl.DataFrame({"item_id": range(4), "name": ["a", None, "c", "d"], "year": [1, 2, 3, 4]})


def test_usual_names_are_found_and_others_are_named() -> None:
    columns = columns_of(ITEMS.lazy())
    assert find_titles(columns) == "name"
    assert find_titles(columns, "") is None
    assert find_titles({"title": columns["year"]}) is None
    both = {**columns, "title": columns["name"]}
    assert find_titles(both) == "title"


@pytest.mark.parametrize(("wanted", "message"), [("label", "it has 'name', 'year'"), ("year", "holds Int64")])
def test_a_wanted_column_that_holds_no_titles_is_an_error(wanted: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        find_titles(columns_of(ITEMS.lazy()), wanted)


def test_titles_come_in_the_order_of_the_rows() -> None:
    columns = columns_of(ITEMS.lazy(), np.array([2, 0, 1], np.int32), np.array([True, False, True, True]))
    assert list(titles_of(columns["name"])) == ["d", "a", "c"]
    assert list(titles_of(columns_of(ITEMS.lazy())["name"])) == ["a", None, "c", "d"]


def test_a_version_holds_the_titles_of_its_catalogue(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": range(8), "title": [f"Title {row}" for row in range(8)]})
    run = FakeRun(num_items=len(items))
    run.scan_items = items.lazy  # type: ignore[method-assign]
    titles = Titles.open(tmp_path / publish_run(run, tmp_path, index="flat"), len(items))
    assert titles is not None
    assert titles.title(7) == "Title 7"
