"""The steps of `--engine ray`, in this process: pieces of any size give the local engine's data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from re4 import DataError, prepare_data
from re4.training.data.distributed import engine as engines
from re4.training.data.distributed.survey import Sizes

TIME = 1_700_000_000


class HereCluster:
    """Calls functions at once."""

    num_cores = 2

    def call(self, function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> Any:
        result = function(*arguments)
        if num_returns == 1:
            return result
        assert len(result) == num_returns
        return list(result)

    def put(self, value: Any) -> Any:
        return value

    def results(self, references: Any, note: Callable[[str], None], title: str) -> list[Any]:
        note(title)
        return list(references)


@contextmanager
def here(address: str | None) -> Iterator[HereCluster]:
    assert address is None
    yield HereCluster()


def log_of(seed: int, num_events: int, num_ids: int, kind: str, gaps: bool) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    table = pl.DataFrame(
        {
            "user": rng.zipf(1.5, num_events) % num_ids,
            "item": rng.zipf(1.4, num_events) % num_ids,
            "timestamp": TIME + 1_000 * rng.integers(0, 50, num_events),
        }
    )
    if kind == "text":
        table = table.with_columns(user=pl.format("u{}", "user"), item=pl.format("{}é", "item"))
    if gaps:
        names = ("user", "item", "timestamp")
        table = table.with_columns(
            pl.when(rng.random(num_events) > 0.03).then(pl.col(name)) for name in names
        )
    return table


@settings(max_examples=settings().max_examples // 4)
@given(data=st.data())
def test_any_log_in_pieces_of_any_size(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("log")
    gaps = data.draw(st.booleans(), "gaps")
    table = log_of(
        data.draw(st.integers(0, 1_000), "seed"),
        data.draw(st.integers(1, 600), "events"),
        data.draw(st.sampled_from([3, 30, 200]), "ids"),
        data.draw(st.sampled_from(["int", "text"]), "kind"),
        gaps,
    )
    suffix = data.draw(st.sampled_from([".parquet", ".csv", ".jsonl"]), "format")
    (folder / "log").mkdir()
    cut = data.draw(st.integers(0, len(table)), "cut")
    for name, part in (("a", table[:cut]), ("b", table[cut:])):
        if len(part):
            path = folder / "log" / f"{name}{suffix}"
            {".parquet": part.write_parquet, ".csv": part.write_csv, ".jsonl": part.write_ndjson}[suffix](
                path
            )
    options: dict[str, Any] = {
        "min_events": data.draw(st.integers(1, 5), "min_events"),
        "max_user_events": data.draw(st.sampled_from([None, 3, 20]), "max_user_events"),
        "split": data.draw(st.sampled_from(["user", "time"]), "split"),
        "drop_invalid": gaps or data.draw(st.booleans(), "drop_invalid"),
        "seed": data.draw(st.integers(0, 3), "seed of the split"),
        "now_s": TIME + data.draw(st.sampled_from([10**8, 0]), "now"),
    }
    sizes = Sizes(
        chunk_rows=data.draw(st.integers(1, 300), "rows"),
        chunk_bytes=data.draw(st.integers(100, 5_000), "bytes"),
        partition_events=data.draw(st.integers(20, 300), "partition"),
        range_items=data.draw(st.integers(1, 100), "range"),
        slab_events=data.draw(st.integers(5, 300), "slab"),
    )
    found: list[Any] = []
    for engine in ("local", "ray"):
        out = folder / engine / "data"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engines, "ray_cluster", here)
            patch.setattr(engines, "Sizes", lambda: sizes)
            try:
                prepare_data(folder / "log", out, engine=engine, **options)
                found.append({path.name: path.read_bytes() for path in out.iterdir()})
            except DataError as error:
                found.append(str(error))
    assert found[0] == found[1]
