"""Data frames in place of files: the same data set, whichever library made them."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from re4.common.errors import DataError, UsageError
from re4.training.data.dataset import Dataset
from re4.training.data.prepare import prepare_data

EVENTS = pl.DataFrame(
    [
        (f"u{user:02}", (user + place) % 12, 1_600_000_000 + 60 * place + user)
        for user in range(40)
        for place in range(9)
    ],
    schema=["user", "item", "timestamp"],
    orient="row",
)
TITLES = pl.DataFrame({"item": range(12), "title": [f"film {item}" for item in range(11)] + [None]})


class ArrowOnly:
    """A data frame of another library, known by its Arrow interface alone."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._frame.__arrow_c_stream__(requested_schema)


class Column:
    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def __iter__(self) -> Any:
        return iter(self._values)

    def isna(self) -> list[bool]:
        return [value is None for value in self._values]


class PandasWithoutPyarrow:
    """What pandas does where pyarrow is not installed: its Arrow interface fails, its columns are there."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame
        self.columns = frame.columns

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        raise ImportError("Import pyarrow failed")

    def __getitem__(self, name: str) -> Column:
        return Column(self._frame[name].to_list())


def content(dataset: Dataset) -> list[Any]:
    return [
        dataset.items().rows(),
        dataset.train.items_E.tolist(),
        dataset.valid.items_E.tolist(),
        dataset.users("test").to_list(),
    ]


@pytest.mark.parametrize("library", [pl.DataFrame, pl.LazyFrame, ArrowOnly, PandasWithoutPyarrow])
def test_a_frame_makes_the_data_set_that_its_file_makes(library: Any, tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "events.parquet")
    TITLES.write_parquet(tmp_path / "titles.parquet")
    of_files = prepare_data(
        tmp_path / "events.parquet", tmp_path / "of_files", catalogue=str(tmp_path / "titles.parquet")
    )
    of_frames = prepare_data(library(EVENTS), str(tmp_path / "of_frames"), catalogue=library(TITLES))
    assert content(of_frames) == content(of_files)
    assert of_frames.info.prepared["events"] == "the data frame"


def test_errors_name_the_data_frame(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data frame has no column 'user'"):
        prepare_data(EVENTS.rename({"user": "visitor"}), tmp_path / "shop")
    with pytest.raises(DataError, match=r"the data frame: column 'item' .* integers or strings"):
        prepare_data(EVENTS.with_columns(item=1.5), tmp_path / "shop")
    with pytest.raises(DataError, match="the data frame: column 'user' is empty in 360 events"):
        prepare_data(EVENTS.with_columns(user=pl.lit("")), tmp_path / "shop")
    with pytest.raises(DataError, match="a list is no table; give a path"):
        prepare_data([1, 2], tmp_path / "shop")  # type: ignore[arg-type]


def test_values_that_the_command_line_would_refuse_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--split is 'item'; choose one of user, time"):
        prepare_data(EVENTS, tmp_path / "shop", split="item")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--min-events is 0"):
        prepare_data(EVENTS, tmp_path / "shop", min_events=0)


def test_a_library_call_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare_data(EVENTS, tmp_path / "shop")
    assert capfd.readouterr() == ("", "")
