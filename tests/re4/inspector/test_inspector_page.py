"""`re4 inspect` without a browser: what the page says for a link, who may see it, and what is escaped."""

import re
import signal
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import polars as pl
import pytest
from running_server import DEADLINE_S, RE4, RunningServer
from small_bundles import SmallVersion
from starlette.testclient import TestClient
from typer.testing import CliRunner

from re4 import Retriever, UsageError, prepare_data
from re4.bundle.hidden_ids import change_hidden
from re4.cli import build_app as build_command
from re4.common.errors import BundleError
from re4.inspector.app import COOKIE, build_app
from re4.inspector.held_out import HeldOutUsers
from re4.inspector.sources import Sources
from re4.inspector.view import Viewer

VERSION = SmallVersion(has_attributes=True, has_titles=True)
HISTORY = ["item-4-é", "item-9-é"]
LINK = "/?h=item-4-%C3%A9&h=item-9-%C3%A9&n=6"


def places(text: str) -> list[str]:
    """The ids of the merged list."""
    body = text[text.index('id="list"') :].partition("</tbody>")[0]
    return [unescape(id_) for id_ in re.findall(r'name="exclude" value="([^"]+)"', body)]


def plain(text: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_an_empty_page_offers_popular_items(page: TestClient) -> None:
    reply = page.get("/")
    assert reply.status_code == 200
    assert "Whose candidates?" in reply.text
    popular = [f"item-{row}-é" for row in VERSION.popular_rows[:12]]
    assert [unescape(id_) for id_ in re.findall(r'name="add" value="([^"]+)"', reply.text)] == popular


def test_the_list_is_that_of_the_version(page: TestClient, versions: tuple[Path, str, str]) -> None:
    text = page.get(LINK).text
    with Retriever.open(versions[0]) as retriever:
        found = retriever.retrieve(HISTORY, 6, exclude_history=True, num_reasons=2)
        best = [
            retriever.retrieve(
                HISTORY, 60, exclude_history=True, merge_policy="round-robin", return_interests=True
            )
        ][0]
    assert places(text) == found.item_ids
    assert found.reasons is not None
    assert f"({found.reasons.weights[0, 0]:.0%})" in text
    assert f"{found.scores[0]:.3f}" in text
    # What each interest finds by itself is exact: the best items of the whole catalogue.
    assert best.interests is not None
    for number, interest_D in enumerate(best.interests.vectors):
        scores_N = VERSION.vectors_ND @ interest_D
        scores_N[[4, 9]] = -1e9
        top = (-scores_N).argsort(kind="stable")[:8]
        column = text[text.index(f'id="interest-{number}"') :].partition("</article>")[0]
        own = re.findall(r"<li><span>([^<]+)</span>", column.partition("Finds by itself")[2])
        assert [unescape(title) for title in own] == [VERSION.titles[row] or f"item-{row}-é" for row in top]
    assert text.count("<article") == 3
    assert 'id="map"' in text
    assert "Time of the request by stage" in text


def test_controls_change_the_list(text_of: Callable[[str], str]) -> None:
    first = places(text_of(LINK))
    assert first[0] not in places(text_of(f"{LINK}&x={first[0]}"))
    assert len(places(text_of(LINK.replace("n=6", "n=9")))) == 9
    red = {f"item-{row}-é" for row, colour in enumerate(VERSION.attributes["colour"]) if colour == "red"}
    assert set(places(text_of(f"{LINK}&f=colour%3Dred"))) <= red
    assert not set(places(text_of(f"{LINK}&f=-colour%3Dred"))) & red
    assert places(text_of(f"{LINK}&merge=round-robin")) != first
    diverse = f"{LINK}&merge=category-diversity&diversity=9&category=colour"
    assert places(text_of(diverse)) != first
    assert set(HISTORY) & set(places(text_of(f"{LINK}&keep-history=1&n=60")))


def test_actions_lead_to_a_link_that_reproduces_the_view(page: TestClient) -> None:
    acted = page.get(f"{LINK}&add=item-1-%C3%A9", follow_redirects=False)
    assert acted.status_code == 303
    link = acted.headers["location"]
    assert "add=" not in link
    assert places(page.get(link).text) == places(page.get(f"{LINK}&h=item-1-%C3%A9").text)


def test_items_are_found_by_title_and_attribute(text_of: Callable[[str], str]) -> None:
    assert "12 items or more" in text_of("/?q=KETTLE")
    assert 'value="item-12-é"' in text_of("/?q=red+12")
    assert "No item is found. Values like it: red." in text_of("/?q-name=colour&q-value=rad")
    assert "No item is found." in text_of("/?q=nothing+like+it")


def test_a_filter_value_that_no_item_has_is_an_empty_list_with_a_hint(text_of: Callable[[str], str]) -> None:
    text = plain(text_of(f"{LINK}&f=colour%3Dreed,xyz"))
    assert "0 candidates" in text
    assert "No item has colour = reed; the nearest are red" in text
    assert "No item has colour = xyz; values are such as" in text


def test_two_versions_stand_side_by_side(page: TestClient, versions: tuple[Path, str, str]) -> None:
    _, live, older = versions
    text = page.get(f"{LINK}&compare={older}").text
    assert 'id="comparison"' in text
    assert "candidates are in both lists" in text
    assert f"live: {live}" in text
    assert "only here" in text
    assert text.count('class="health"') == 2
    same = plain(page.get(f"{LINK}&compare={live}").text)
    assert "Both lists are equal: 6 candidates at the same places." in same
    policies = page.get(f"{LINK}&compare-merge=equal-quota").text
    assert "default policy" in policies
    assert policies.count('class="health"') == 1


@pytest.mark.parametrize(
    ("link", "status", "message"),
    [
        ("/?n=x", 400, "n is 'x'; it must be a whole number"),
        (f"{LINK}&n=0", 200, "num_candidates is 0; it must be from 1"),
        (f"{LINK}&f=size%3D1", 200, "version"),
        (f"{LINK}&effort=99", 200, "search_effort is 99"),
        ("/?source=elsewhere", 200, "there is no source 'elsewhere'"),
        (f"{LINK}&compare=elsewhere", 200, "there is no source 'elsewhere'"),
        ("/?held-out=3", 200, "held-out users need a data set"),
        ("/?h=unknown-1", 200, "Nothing of the history is known to this version"),
    ],
)
def test_problems_are_on_the_page(page: TestClient, link: str, status: int, message: str) -> None:
    reply = page.get(link)
    assert reply.status_code == status
    assert message in plain(reply.text)
    assert 'id="state"' in reply.text, "the settings stay"


def test_everything_is_escaped(text_of: Callable[[str], str]) -> None:
    text = text_of("/?q=%3Cscript%3Ealert(1)%3C/script%3E&h=%22%3E%3Cimg+src=x%3E&user=%3Cb%3E&f=%3Ci%3E%3Dx")
    assert not re.search(r"<(script>|img|b>|i>)", text)
    assert "<b>Kettle" not in text_of("/?q=kettle"), "titles are text"
    assert "&lt;b&gt;Kettle" in text_of("/?q=kettle")


def test_headers_allow_nothing_from_elsewhere(page: TestClient) -> None:
    for path in ("/", "/page/page.js", "/values?name=colour", "/nowhere"):
        headers = page.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
    for path in ("/page/page.css", "/page/page.js"):
        assert page.get(path).status_code == 200
    assert page.get("/page/..%2Fapp.py").status_code == 404
    assert page.get("/favicon.ico").status_code == 204
    assert not re.search(r'(?:src|href)="(?!/|#)', page.get("/").text), "nothing comes from another machine"


def test_values_are_suggested(page: TestClient) -> None:
    assert set(page.get("/values?name=colour").json()["values"]) == {"red", "green", "blue"}
    assert next(iter(page.get("/values?name=colour&like=gr").json()["values"])) == "green"
    wrong = page.get("/values?name=size")
    assert (wrong.status_code, "size" in wrong.json()["error"]) == (400, True)


def test_every_input_has_a_label(text_of: Callable[[str], str]) -> None:
    text = text_of(f"{LINK}&compare-merge=equal-quota&f=colour%3Dred")
    labels = set(re.findall(r'<label for="([^"]+)"', text))
    inputs = re.findall(r"<(?:input|select|textarea)(?![^>]*type=\"hidden\")[^>]*>", text)
    ids = [re.search(r'id="([^"]+)"', each) for each in inputs]
    assert len(inputs) > 15
    assert all(id_ is not None and id_[1] in labels for id_ in ids)
    assert not re.search(r"<button(?![^>]*aria-label)[^>]*>[^\w]*</button>", text)


def test_a_page_for_other_machines_needs_its_token(versions: tuple[Path, str, str]) -> None:
    sources = Sources(bundles=[versions[0]])
    app = build_app(Viewer(sources), token="secret-é")
    with TestClient(app, base_url="http://127.0.0.1:8765") as client:
        for path in ("/", "/values?name=colour", "/page/page.js", "/?token=wrong"):
            assert client.get(path, follow_redirects=False).status_code == 401
        entered = client.get("/?token=secret-%C3%A9&q=red", follow_redirects=False)
        assert entered.headers["location"] == "/?q=red"
        assert "HttpOnly; Path=/; SameSite=strict" in entered.headers["set-cookie"]
    with TestClient(app, base_url="http://127.0.0.1:8765", cookies={COOKIE: "wrong"}) as client:
        assert client.get("/").status_code == 401
    sources.close()


def test_a_local_page_answers_to_its_own_names_alone(versions: tuple[Path, str, str]) -> None:
    sources = Sources(bundles=[versions[0]])
    app = build_app(Viewer(sources), hosts=frozenset({"127.0.0.1", "localhost", "::1"}))
    for host, status in (
        ("127.0.0.1:8765", 200),
        ("localhost", 200),
        ("[::1]:8765", 200),
        ("evil.example", 400),
    ):
        with TestClient(app, base_url=f"http://{host}") as client:
            assert client.get("/").status_code == status, host
    sources.close()


def test_held_out_users_and_their_later_items(versions: tuple[Path, str, str], tmp_path: Path) -> None:
    rows = [
        (f"u{user}", f"item-{(7 * user + 3 * time) % 30}-é", time) for user in range(40) for time in range(8)
    ]
    events = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    dataset = prepare_data(events, tmp_path / "data", min_events=1)
    users = HeldOutUsers(dataset.path)
    sources = Sources(bundles=[versions[0]])
    with TestClient(build_app(Viewer(sources, users)), base_url="http://127.0.0.1") as client:
        user = users.user("0")
        assert users.user(f"={user.user_id}") == user
        text = plain(client.get("/?held-out=0&n=60").text)
        assert f"Held-out user {user.user_id}" in text
        assert f"Of the {len(set(user.later))} items that the user chose later" in text
        assert "✓ chosen later" in text
        assert "no user 'nobody'" in plain(client.get("/?held-out=%3Dnobody").text)
        assert "'x' is no number from 0" in plain(client.get("/?held-out=x").text)
    sources.close()


def test_a_server_is_looked_at_and_its_failure_is_explained(versions: tuple[Path, str, str]) -> None:
    folder = versions[0]
    with RunningServer(folder) as server:
        sources = Sources(addresses=[server.address], bundles=[folder])
        with TestClient(build_app(Viewer(sources)), base_url="http://127.0.0.1") as client:
            text = client.get(LINK).text
            with Retriever.open(folder) as retriever:
                assert places(text) == retriever.retrieve(HISTORY, 6, exclude_history=True).item_ids
            both = plain(client.get(f"{LINK}&compare={versions[1]}").text)
            assert "Both lists are equal" in both
            assert f"server {server.address}" in both
            server.stop()
            assert "UNAVAILABLE" in plain(client.get(LINK).text)
    sources.close()


def test_hidden_and_live_items_are_marked(tmp_path: Path) -> None:
    VERSION.publish(tmp_path)
    change_hidden(tmp_path, hide=["item-4-é"], kind="string")
    sources = Sources(bundles=[tmp_path])
    with TestClient(build_app(Viewer(sources)), base_url="http://127.0.0.1") as client:
        text = plain(client.get(LINK).text)
        assert "hidden items 1" in text
        assert "hidden" in text.partition("History, oldest first")[2].partition("item-9")[0]
    sources.close()


def test_the_command_prints_the_link_of_its_page(versions: tuple[Path, str, str]) -> None:
    words = ["inspect", "--bundles", str(versions[0]), "--listen", "127.0.0.1:0", "--no-open"]
    with subprocess.Popen([*RE4, *words], stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr is not None
        try:
            line = command.stderr.readline()
            link = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert link is not None, line
            with urlopen(link[0], timeout=DEADLINE_S) as reply:
                assert b"Whose candidates?" in reply.read()
        finally:
            command.terminate()
    assert command.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def run(*words: str) -> Any:
    done = CliRunner().invoke(build_command(["inspect"]), ["inspect", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_wrong_uses_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="what shall the page show"):
        run()
    with pytest.raises(BundleError):
        run("--bundles", str(tmp_path))
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        run("--address", "127.0.0.1:1", "--listen", "here")
