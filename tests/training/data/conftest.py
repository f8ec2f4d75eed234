from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Row = tuple[object, object, object]


@pytest.fixture
def event_csv(tmp_path: Path) -> Callable[[Sequence[Row]], Path]:
    def write(rows: Sequence[Row]) -> Path:
        file = tmp_path / "events.csv"
        lines = ["user,item,timestamp", *(",".join(str(field) for field in row) for row in rows)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    return write
