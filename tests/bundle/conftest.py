"""Small published versions."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_versions import publish_one


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
