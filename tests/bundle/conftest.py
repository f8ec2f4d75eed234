"""Small published versions."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from sample_versions import publish_one

_SHORT_STEP: Final = 4


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    return tmp_path / "bundles"


@pytest.fixture
def publish(bundles: Path) -> Callable[[str], Path]:
    """Publish a version with the given content; return its folder."""
    return lambda content: publish_one(bundles, content)


@pytest.fixture
def version(bundles: Path) -> Path:
    """One published version."""
    return publish_one(bundles)


@pytest.fixture
def lines_of_deaths(pytestconfig: pytest.Config) -> tuple[int, int]:
    """The first line at which a child process kills itself, and the step to that of the next child.

    Each line with `--hardening long`, and each fourth otherwise. The first one changes from day to day: the
    runs of four days have a death at every line.
    """
    if pytestconfig.getoption("--hardening") == "long":
        return 0, 1
    return datetime.now(UTC).toordinal() % _SHORT_STEP, _SHORT_STEP
