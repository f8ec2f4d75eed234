from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_bundles import SmallVersion
from starlette.testclient import TestClient

from re4.inspector.app import build_app
from re4.inspector.sources import Sources
from re4.inspector.view import Viewer


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A bundle directory, its live version, and an older one."""
    folder = tmp_path_factory.mktemp("inspected")
    older = SmallVersion(seed=1, has_attributes=True, has_titles=True).publish(folder)
    live = SmallVersion(has_attributes=True, has_titles=True).publish(folder)
    return folder, live, older


@pytest.fixture(scope="module")
def page(versions: tuple[Path, str, str]) -> Iterator[TestClient]:
    sources = Sources(bundles=[versions[0]])
    with TestClient(build_app(Viewer(sources)), base_url="http://127.0.0.1:8765") as client:
        yield client
    sources.close()


@pytest.fixture(scope="module")
def text_of(page: TestClient) -> Callable[[str], str]:
    """The page of a link, as text."""
    return lambda link: page.get(link).text
