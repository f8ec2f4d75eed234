"""A walk through the page in a real browser: type, click, read, compare, at two widths.

The test `test_inspector_browser.py` walks over small versions. As a script, it walks over given versions and
writes the pictures of the documentation:

    python tests/re4/inspector/browser_walk.py BUNDLES DATA RUN/report/index.html --words "star wars"
"""

import argparse
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from re4.inspector.app import build_app
from re4.inspector.held_out import HeldOutUsers
from re4.inspector.sources import Sources
from re4.inspector.view import Viewer

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 420, "height": 900}
PICTURES = Path(__file__).parents[3] / "docs" / "pictures"
DEADLINE_MS = 20_000
_TITLES = "#list td:nth-child(2) .title"


def find_browser() -> str | None:
    """Return the path of the system's Chromium; None where there is none."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )


@contextmanager
def served(viewer: Viewer) -> Iterator[str]:
    """Serve a page from this process on a free port; yield its address."""
    config = uvicorn.Config(build_app(viewer), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    sock = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="inspector")
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium, without its sandbox where the user is root."""
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


def walk(opened: Browser, address: str, words: Sequence[str], pictures: Path | None = None) -> None:
    """Search, click, read, compare; fail where the page does not answer as it should."""
    page = opened.new_page(viewport=WIDE)
    page.set_default_timeout(DEADLINE_MS)
    expect.set_options(timeout=DEADLINE_MS)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))

    page.goto(address)
    expect(page.get_by_role("heading", name="Whose candidates?")).to_be_visible()
    for number, text in enumerate(words, start=1):
        page.get_by_label("Words of the title, or an id").fill(text)
        page.keyboard.press("Enter")
        expect(page).to_have_url(_containing(urlencode({"q": text})))
        title = page.locator("#found .title").first.inner_text()
        page.get_by_role("button", name=f"Add {title} to the history", exact=True).first.click()
        expect(page.locator("#history li")).to_have_count(number)
        expect(page.locator("#history .title").last).to_have_text(title)
    expect(page.locator("#list tbody tr")).to_have_count(20)
    expect(page.locator("article").first).to_contain_text("Attends to")
    expect(page.get_by_role("img", name="Map")).to_be_visible()
    assert page.locator("#map circle title").count() >= 20

    before = _titles(page)
    page.get_by_label("Merge policy", exact=True).select_option("round-robin")
    expect(page).to_have_url(_containing("merge=round-robin"))
    expect(page.locator("#page:not([aria-busy])")).to_be_visible()
    page.get_by_label("Candidates", exact=True).fill("10")
    page.keyboard.press("Tab")
    expect(page.locator("#list tbody tr")).to_have_count(10)
    shown = _titles(page)
    page.get_by_role("button", name=f"Exclude {shown[0]}", exact=True).click()
    expect(page).to_have_url(_containing("&x="))
    assert shown[0] not in _titles(page)
    link = page.url
    with opened.new_page(viewport=WIDE) as other:
        other.goto(link)
        assert _titles(other) == _titles(page), "a link reproduces the view"
    for _ in range(3):
        page.go_back()
    expect(page.locator(_TITLES)).to_have_text(before)  # the browser's history works

    page.get_by_label("Source", exact=True).focus()
    for _ in range(3):  # the keyboard alone reaches the search
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "q"
    _picture(page, pictures, "inspector.png", height=1500)

    page.get_by_label("Compare with").select_option(index=2)
    expect(page.locator("#comparison tbody tr")).to_have_count(20)
    expect(page.locator("#list-title")).to_have_text("Two lists")
    expect(page.locator("main")).to_contain_text("candidates are in both lists")
    _picture(page, pictures, "inspector-compared.png", height=1100)

    page.set_viewport_size(NARROW)
    page.go_back()
    expect(page.locator("#list tbody tr")).to_have_count(20)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"], (
        "nothing is cut at the side"
    )
    page.get_by_role("link", name="Go to the results").click()
    assert page.evaluate("document.activeElement.id") == "results"
    _picture(page, pictures, "inspector-narrow.png", height=1400, selector="#results")

    page.get_by_label("Search effort").fill("99")
    page.keyboard.press("Tab")
    expect(page.get_by_role("alert")).to_contain_text("search_effort is 99; it must be from")
    assert not problems, problems
    page.close()


def show_report(opened: Browser, report: Path, pictures: Path | None = None) -> None:
    """Look at the page of `re4 report` at both widths; fail where it is cut or a picture is missing."""
    for viewport, name, height in ((WIDE, "report.png", 1500), (NARROW, "report-narrow.png", 1300)):
        page = opened.new_page(viewport=viewport)
        page.goto(report.absolute().as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], "nothing is cut"
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0 && image.alt)")
        _picture(page, pictures, name, height=height)
        page.close()


def _titles(page: Page) -> list[str]:
    return page.locator(_TITLES).all_inner_texts()


def _containing(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text))


def _picture(page: Page, pictures: Path | None, name: str, *, height: int, selector: str = "body") -> None:
    if pictures is None:
        return
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    box = page.locator(selector).bounding_box()
    assert box is not None
    clip = {"x": box["x"], "y": box["y"], "width": box["width"], "height": min(height, box["height"])}
    page.screenshot(path=pictures / name, full_page=True, clip=clip)  # type: ignore[arg-type]


def main() -> None:
    """Write the pictures of the documentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("report", type=Path, help="The page of `re4 report`.")
    parser.add_argument("--words", action="append", required=True)
    given = parser.parse_args()
    sources = Sources(bundles=[given.bundles])
    with served(Viewer(sources, HeldOutUsers(given.data))) as address, browser() as opened:
        walk(opened, address, given.words, PICTURES)
        show_report(opened, given.report, PICTURES)
    sources.close()


if __name__ == "__main__":
    main()
