"""What most tests of `re4 bench serve` share."""

from pathlib import Path

import pytest

from re4.benchmarks.serve import runner


@pytest.fixture(autouse=True)
def _known_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests are not about the client's own limit."""
    monkeypatch.setattr("re4.benchmarks.serve.benchmark.measure_ceiling", lambda *_, **__: 5000.0)
    monkeypatch.setattr(runner, "MIN_LAG_MS", 1000.0)  # a busy machine is late by itself


@pytest.fixture
def ids_file(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text("".join(f"{item_id}\n" for item_id in range(100)))
    return path
