"""The examples of docs/python.md run, from top to bottom."""

import random
import re
from pathlib import Path

import polars as pl
import pytest
from running_server import RunningServer

import re4

PAGE = Path(__file__).parents[2] / "docs/python.md"
GENRES = ["drama", "comedy", "horror", "western"]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a log of users who each like two of four genres."""
    rng = random.Random(0)
    likes = [rng.sample(range(len(GENRES)), 2) for _ in range(60)]
    events = [
        (f"user-{user}", f"SKU-{15 * rng.choice(liked) + rng.randrange(15)}", 1_700_000_000 + 60 * time)
        for user, liked in enumerate(likes)
        for time in range(12)
    ]
    pl.DataFrame(events, ["user", "item", "timestamp"], orient="row").write_parquet(
        tmp_path / "events.parquet"
    )
    items = {"item": [f"SKU-{item}" for item in range(60)], "genre": [GENRES[i // 15] for i in range(60)]}
    pl.DataFrame(items).write_parquet(tmp_path / "catalogue.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_run(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        if "127.0.0.1:8700" in block:
            with RunningServer(shop / "bundles") as server:
                exec(block.replace("127.0.0.1:8700", server.address), names)
        else:
            exec(block, names)
    assert {"found", "one", "many", "filtered", "varied", "thorough"} <= names.keys()
    assert all(isinstance(each, re4.Candidates) for each in (names["found"], *names["many"]))
    assert capsys.readouterr().out.startswith("Recall@20 of held-out users: 0.")
