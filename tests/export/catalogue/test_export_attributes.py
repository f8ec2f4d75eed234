"""Catalogue columns that become attributes of a version, with unchanged values."""

from pathlib import Path

import polars as pl
import pytest
from run_samples import FakeRun, publish_run

from re4.bundle.attributes.reader import Attributes
from re4.bundle.verify import verify_version
from re4.common.errors import ExportError
from re4.exporting.catalogue.attributes import choose_attributes
from re4.exporting.catalogue.items import columns_of

ITEMS = pl.DataFrame(
    {
        "item_id": range(8),
        "title": [f"Title {row}" for row in range(8)],
        "genres": [["Drama"], ["Drama", "Comedy"], [], None, ["Comedy", None], ["Drama"], ["Drama"], [""]],
        "year": [1999, 1999, None, 2001, 2001, 2001, 1999, 1999],
        "in_print": [True, False, None, True, True, True, True, False],
        "price": [1.5, 2.0, 3.25, 4.0, 5.0, 6.0, 7.0, None],
        "released": pl.Series(["2026-01-31"] * 8).str.to_datetime().dt.replace_time_zone("UTC"),
        "length": pl.Series(range(8)).cast(pl.Duration("ms")),
        "empty": pl.Series([None] * 8, dtype=pl.String),
    }
)


def test_columns_that_describe_are_kept_and_columns_that_name_are_not() -> None:
    chosen = choose_attributes(columns_of(ITEMS.lazy()))
    assert list(chosen.columns) == ["genres", "year", "in_print", "price", "released"]
    assert set(chosen.left_out) == {"title", "length", "empty"}
    assert "names items" in chosen.left_out["title"]


def test_fractions_and_dates_of_a_csv_file_are_kept() -> None:
    """There all columns are texts. Whole numbers may be ids."""
    items = pl.DataFrame(
        {
            "item_id": range(6),
            "price": ["1.50", "12", "", None, ".5", "1e3"],
            "released": [f"2026-01-0{day}" for day in range(1, 7)],
            "at": [f"2026-01-01T10:0{minute}:00Z" for minute in range(6)],
            "code": [f"{row}" for row in range(6)],
            "mixed": ["1.5", "2.5", "3.5", "4.5", "5.5", "none"],
            "number_or_date": ["1.5", "2026-01-01", "2.5", "3.5", "4.5", "5.5"],
        }
    )
    chosen = choose_attributes(columns_of(items.lazy()))
    assert list(chosen.columns) == ["price", "released", "at"]
    assert set(chosen.left_out) == {"code", "mixed", "number_or_date"}
    assert "--attributes would keep it" in chosen.left_out["code"]


def test_a_wanted_column_is_kept_whatever_its_values() -> None:
    assert list(choose_attributes(columns_of(ITEMS.lazy()), ["title", "year"]).columns) == ["title", "year"]
    assert not choose_attributes(columns_of(ITEMS.lazy()), []).columns


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("colour", "it has 'title', 'genres'"), ("length", "Duration"), ("empty", "no item has a value")],
)
def test_a_wanted_column_that_cannot_be_kept_is_an_error(wanted: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        choose_attributes(columns_of(ITEMS.lazy()), [wanted])


def test_a_column_of_too_many_or_too_long_values_is_left_out() -> None:
    num_items = 200_002
    items = pl.DataFrame({"item_id": range(num_items)}).with_columns(
        many=pl.col("item_id") // 2, long=pl.lit("x" * 1025)
    )
    chosen = choose_attributes(columns_of(items.lazy()))
    assert not chosen.columns
    assert "more than 100,000 different values" in chosen.left_out["many"]
    assert "1025 bytes" in chosen.left_out["long"]


def test_a_version_holds_the_attributes_of_its_catalogue(tmp_path: Path) -> None:
    run = FakeRun(num_items=len(ITEMS))
    run.scan_items = ITEMS.lazy  # type: ignore[method-assign]
    path = tmp_path / publish_run(run, tmp_path, index="flat")
    items = verify_version(path).items
    attributes = Attributes.open(path, items.attributes, items.num_items)
    assert attributes.names == ("genres", "year", "in_print", "price", "released")
    found = {
        name: {
            value: attributes[name].rows_with([code]).tolist()
            for code, value in enumerate(attributes[name].values())
        }
        for name in attributes.names
    }
    assert found == {
        "genres": {"Comedy": [1, 4], "Drama": [0, 1, 5, 6]},
        "year": {"1999": [0, 1, 6, 7], "2001": [3, 4, 5]},
        "in_print": {"false": [1, 7], "true": [0, 3, 4, 5, 6]},
        "price": {"1.5": [0], "2": [1], "3.25": [2], "4": [3], "5": [4], "6": [5], "7": [6]},
        "released": {"2026-01-31T00:00:00": list(range(8))},
    }
    assert attributes["price"].rows_with(attributes["price"].codes_within(2, 4)).tolist() == [1, 2, 3]
    assert attributes["released"].order == "date"
