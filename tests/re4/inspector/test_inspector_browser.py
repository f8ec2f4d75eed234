"""The page in a real browser. Left out, with a message, where no Chromium is installed."""

from pathlib import Path

import pytest
from browser_walk import browser, find_browser, served, walk

from re4.inspector.sources import Sources
from re4.inspector.view import Viewer


@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed: Debian's package is `chromium`")
def test_a_walk_through_the_page(versions: tuple[Path, str, str]) -> None:
    sources = Sources(bundles=[versions[0]])
    with served(Viewer(sources)) as address, browser() as opened:
        walk(opened, address, ["red 12", "kettle 4", "café 20"])
    sources.close()
