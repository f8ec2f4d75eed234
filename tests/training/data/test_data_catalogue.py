from pathlib import Path

import polars as pl
import pytest

from re4.common.errors import DataError
from re4.training.data.catalogue import join_catalogue, read_catalogue
from re4.training.data.tables.row_store import in_memory


def write(folder: Path, text: str, name: str = "films.csv") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_columns_are_joined_in_item_order_and_gaps_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path, "title,item,year\nOne,1,1991\nTwo,2,\nNine,9,1999\n")
    got = join_catalogue(pl.Series([2, 5, 1]), read_catalogue(file, "item", in_memory))
    assert got.items.columns == ["item_id", "title", "year"]
    assert got.items.rows() == [(2, "Two", None), (5, None, None), (1, "One", 1991)]
    assert got.noticed == {"items_without_catalogue_row": 1, "catalogue_rows_without_item": 1}


@pytest.mark.parametrize(
    ("item_ids", "name", "text", "titles"),
    [
        ([12, 7], "f.csv", "item,title\n12,a\n7,b\n", ["a", "b"]),
        ([12, 7], "f.csv", "item,title\n12,a\n07,b\nx,c\n", ["a", None]),
        (["12", "07"], "f.csv", "item,title\n12,a\n7,b\n", ["a", None]),
        (["12", "07"], "f.csv", "item,title\n12,a\n07,b\n", ["a", "b"]),
        (["12", "x"], "f.jsonl", '{"item":12,"title":"a"}\n{"item":7,"title":"b"}\n', ["a", None]),
        ([12, 7], "f.jsonl", '{"item":"12","title":"a"}\n{"item":"007","title":"b"}\n', ["a", None]),
    ],
)
def test_ids_match_by_value_whichever_kind_the_files_have(
    item_ids: list[object], name: str, text: str, titles: list[str | None], tmp_path: Path
) -> None:
    got = join_catalogue(pl.Series(item_ids), read_catalogue(write(tmp_path, text, name), "item", in_memory))
    assert got.items["item_id"].to_list() == item_ids
    assert got.items["title"].to_list() == titles
    assert got.noticed["items_without_catalogue_row"] == titles.count(None)


def test_categories_in_parquet_match_by_name_and_lists_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "f.parquet"
    ids = pl.Series("item", ["7", "5"], dtype=pl.Categorical)
    pl.DataFrame([ids, pl.Series("genres", [["Drama", "War"], []])]).write_parquet(file)
    got = join_catalogue(pl.Series([5, 7]), read_catalogue(file, "item", in_memory))
    assert got.items["genres"].to_list() == [[], ["Drama", "War"]]


def test_text_columns_stay_as_they_are_unless_all_are_whole_numbers(tmp_path: Path) -> None:
    file = write(tmp_path, "item,zip,year,score,none\n1,00123,1990,1.50,\n2,90210,,2,\n")
    rows = read_catalogue(file, "item", in_memory).rows.collect()
    assert rows["zip"].to_list() == ["00123", "90210"]
    assert rows["year"].to_list() == [1990, None]
    assert rows["score"].to_list() == ["1.50", "2"]
    assert rows["none"].to_list() == [None, None]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("item,title\n1,a\n2,b\n1,c\n2,d\n", ["more than once", "2 rows too many", "'1'"]),
        ("item,title\n1,a\n,b\n", ["empty in 1 rows"]),
        ("film,title\n1,a\n", ["'item'", "'film', 'title'", "--catalogue-item-column"]),
        ("item,title\n", ["no rows"]),
        ("item,title\n\n", ["no rows"]),
        ("item,item_id\n1,2\n", ["'item_id'", "--catalogue-item-column"]),
    ],
)
def test_catalogues_that_cannot_be_used_are_refused(text: str, parts: list[str], tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_catalogue(file, "item", in_memory)
    for part in [str(file), *parts]:
        assert part in str(caught.value)


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    assert read_catalogue(write(tmp_path, "item,title\n1,a\n\n"), "item", in_memory).num_rows == 1


def test_a_catalogue_of_other_items_is_refused(tmp_path: Path) -> None:
    catalogue = read_catalogue(write(tmp_path, "item,title\nx1,a\n"), "item", in_memory)
    with pytest.raises(DataError, match=r"none of the 2 items .*'x1'.*--catalogue-item-column"):
        join_catalogue(pl.Series([1, 2]), catalogue)
