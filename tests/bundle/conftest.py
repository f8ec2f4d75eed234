"""Small published versions to look at and to damage."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_versions import publish_one


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    return tmp_path / "bundles"


@pytest.fixture
def publish(bundles: Path) -> Callable[[str], Path]:
    """Publish a version whose files differ by the given content; gives its folder."""
    return lambda content: publish_one(bundles, content)


@pytest.fixture
def version(bundles: Path) -> Path:
    """One published version."""
    return publish_one(bundles)
