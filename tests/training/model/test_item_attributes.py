"""Values of attributes are numbered: lists, missing values, values that name one item, and bad names."""

from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest

from re4.common.errors import UsageError
from re4.training.model.attribute_values import attribute_values

ITEMS = pl.DataFrame(
    {
        "item_id": [7, 8, 9, 10],
        "kind": ["rock", "folk", "rock", None],
        "words": [["slow", "slow", "live"], [], None, ["slow", None, ""]],
        "year": [1990, 1990, 1991, 1992],
        "title": ["a", "b", "c", "d"],
    }
)


def sharing(names: str, items: pl.DataFrame = ITEMS) -> list[set[int]]:
    """The rows of the items of each number, 1 first."""
    found = attribute_values(items, names)
    rows: list[set[int]] = [set() for _ in range(found.num_weights - 1)]
    for owner, weight in zip(found.owners_E.tolist(), found.weights_E.tolist(), strict=True):
        assert owner not in rows[weight - 1], "a value counts once for an item"
        rows[weight - 1].add(owner)
    return rows


def test_items_that_share_a_value_have_its_number() -> None:
    assert sharing("kind, words,year,kind") == [{0, 2}, {0, 3}, {0, 1}]  # rock, slow, 1990


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.5, float("nan"), 1.5, float("nan")], [{0, 2}]),
        ([True, False, True, None], [{0, 2}]),
        ([date(2026, 1, 1), None, date(2026, 1, 1), date(2026, 1, 2)], [{0, 2}]),
        (pl.Series([["a"], ["b"], ["a"], ["c"]], dtype=pl.Array(pl.String, 1)), [{0, 2}]),
        (pl.Series(["a", "b", "a", "c"], dtype=pl.Categorical), [{0, 2}]),
    ],
)
def test_a_column_holds_texts_numbers_booleans_or_dates(values: Any, expected: list[set[int]]) -> None:
    assert sharing("it", pl.DataFrame({"item_id": range(4), "it": values})) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("kind,colour", "no column 'colour'; it has kind, words, year, title"),
        ("kind,title", "no two items share a value of 'title'"),
        ("item_id", "no column 'item_id'"),
        (" , ", "names no column"),
    ],
)
def test_names_that_give_nothing_are_refused(names: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attribute_values(ITEMS, names)


@pytest.mark.parametrize("value", [{"a": 1}, [["a"]], [{"a": 1}], b"a", timedelta(1)])
def test_other_columns_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"column 'it' holds .*, not texts, numbers, booleans, dates"):
        attribute_values(pl.DataFrame({"item_id": range(4), "it": [value] * 4}), "it")


@pytest.mark.parametrize("values", [[None] * 4, [[], [], None, []], ["a"]])
def test_a_column_without_shared_values_is_refused(values: list[Any]) -> None:
    with pytest.raises(UsageError, match="no two items share a value of 'it'"):
        attribute_values(pl.DataFrame({"item_id": range(len(values)), "it": values}), "it")


def test_a_data_set_without_a_catalogue_says_how_to_get_one() -> None:
    with pytest.raises(UsageError, match="prepare it with --catalogue, or train without them"):
        attribute_values(ITEMS.select("item_id"), "kind")
