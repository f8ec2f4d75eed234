import io
import zipfile
from pathlib import Path

import polars as pl
import pytest

from re4.common.errors import DataError, FetchError, UsageError
from re4.training.data.sources import download as download_module
from re4.training.data.sources import fetch as fetch_module
from re4.training.data.sources.download import Fetched, Response, download, get_package, open_address
from re4.training.data.sources.ml_100k import ADDRESS, GENRES, fetch


def flags(*genres: str) -> str:
    return "|".join("1" if genre in genres else "0" for genre in GENRES)


GROUPLENS = {
    "ml-100k/u.data": b"196\t242\t3\t881250949\n22\t1412\t1\t878887116\n",
    "ml-100k/u.item": "\n".join(
        [
            f"1|Toy Story (1995)|01-Jan-1995||http://a/?(1995)|{flags('Animation', 'Comedy')}",
            f"267|unknown||||{flags('unknown')}",
            f"543|Mis\xe9rables, Les (1995)|01-Jan-1995||http://b|{flags('Drama')}",
            f"1412|Land Before Time III (1995) (V)|01-Jan-1995||http://c|{flags('Animation')}",
            f"1103|C\xe9r\xe9monie (Film, The) (1995) |01-Jan-1995||http://d|{flags('Sci-Fi', 'War')}",
            "",
        ]
    ).encode("latin-1"),
}
RECBOLE = {
    "recbole/dataset_example/ml-100k/ml-100k.inter": (
        b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        b"196\t242\t3\t881250949\n22\t1412\t1\t878887116\n"
    ),
    "recbole/dataset_example/ml-100k/ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Comedy\n"
        "267\tunkonwn\tunkonwn\tunknown\n"
        "543\tMis\xe9rables, Les\t1995\tDrama\n"
        "1412\tLand Before Time III (1995)\tV\tAnimation\n"
        "1103\tC\xe9r\xe9monie (Film, The)\t1995\tSci-Fi War\n"
    ).encode(),
}
FILMS = [
    (1, "Toy Story", 1995, ["Animation", "Comedy"]),
    (267, "unknown", None, ["unknown"]),
    (543, "Mis\xe9rables, Les", 1995, ["Drama"]),
    (1412, "Land Before Time III", 1995, ["Animation"]),
    (1103, "C\xe9r\xe9monie (Film, The)", 1995, ["Sci-Fi", "War"]),
]


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class FakeResponse:
    """A site's answer: `length` bytes are promised, `content` comes."""

    first_byte = 0

    def __init__(self, content: bytes, length: int | None) -> None:
        self.stream = io.BytesIO(content)
        self.length = length
        self.closed = False

    def read(self, num_bytes: int, /) -> bytes:
        return self.stream.read(num_bytes)

    def close(self) -> None:
        self.closed = True


class Site:
    """Answers every address with the same bytes, and records the requests."""

    def __init__(self, content: bytes, length: int | None = None) -> None:
        self.content = content
        self.length = len(content) if length is None else length
        self.requests: list[str] = []

    def __call__(self, address: str, first_byte: int = 0) -> Response:
        self.requests.append(address)
        return FakeResponse(self.content, self.length)


def unreachable(address: str, first_byte: int = 0) -> Response:
    raise OSError("no route to host")


def no_package(requirement: str, folder: Path) -> Path:
    raise FetchError("pip has no index")


def package(content: bytes) -> download_module.PackageGetter:
    def get(requirement: str, folder: Path) -> Path:
        assert requirement == "recbole==1.2.1"
        wheel = folder / "recbole-1.2.1-py3-none-any.whl"
        wheel.write_bytes(content)
        return wheel

    return get


def test_both_sources_give_identical_files(tmp_path: Path) -> None:
    site = Site(zipped(GROUPLENS))
    ours = fetch(tmp_path / "site", site, no_package)
    theirs = fetch(tmp_path / "wheel", unreachable, package(zipped(RECBOLE)))
    assert site.requests == [ADDRESS]
    assert ours.events.read_bytes() == theirs.events.read_bytes()
    assert ours.catalogue.read_bytes() == theirs.catalogue.read_bytes()
    assert ours.events.read_text().splitlines() == [
        "user,item,timestamp,rating",
        "196,242,881250949,3",
        "22,1412,878887116,1",
    ]
    catalogue = pl.read_parquet(ours.catalogue)
    assert catalogue.columns == ["item", "title", "year", "genres"]
    assert catalogue.rows() == FILMS


def test_the_note_says_source_reason_and_terms(tmp_path: Path) -> None:
    ours = fetch(tmp_path / "site", Site(zipped(GROUPLENS)), no_package).source.read_text()
    theirs = fetch(tmp_path / "wheel", unreachable, package(zipped(RECBOLE))).source.read_text()
    assert f"Source of these files: {ADDRESS}" in ours
    assert "recbole==1.2.1, because" in theirs
    assert "no route to host" in theirs
    for note in (ours, theirs):
        for term in ("research", "do not pass the data on", "GroupLens", "cite: F. Maxwell Harper"):
            assert term in note


def test_only_the_three_files_are_left(tmp_path: Path) -> None:
    fetch(tmp_path / "out", unreachable, package(zipped(RECBOLE)))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "SOURCE.txt",
        "catalogue.parquet",
        "events.csv",
    ]


def test_what_is_there_already_is_not_fetched_again(tmp_path: Path) -> None:
    first = fetch(tmp_path, Site(zipped(GROUPLENS)), no_package)
    assert fetch(tmp_path, unreachable, no_package) == first


def test_a_fetch_that_was_interrupted_is_done_again(tmp_path: Path) -> None:
    first = fetch(tmp_path, Site(zipped(GROUPLENS)), no_package)
    first.source.unlink()
    first.events.write_text("half")
    fetch(tmp_path, Site(zipped(GROUPLENS)), no_package)
    assert first.events.read_text().startswith("user,item,timestamp,rating\n196")


@pytest.mark.parametrize(
    "site",
    [
        Site(b"<html>captive portal</html>"),
        Site(zipped(GROUPLENS), length=10**6),
        Site(zipped(GROUPLENS)[:100], length=100),
        Site(zipped({"ml-100k/u.data": b""})),
        Site(zipped(GROUPLENS | {"ml-100k/u.data": b""})),
        Site(zipped(GROUPLENS | {"ml-100k/u.data": b"1,2,3,4\n"})),
        Site(zipped(GROUPLENS | {"ml-100k/u.item": b"1|Toy Story (1995)||||0|1\n"})),
    ],
    ids=["html", "cut", "half a zip", "no items", "no events", "other separator", "other genres"],
)
def test_a_site_that_answers_with_something_else_is_passed_over(site: Site, tmp_path: Path) -> None:
    fetched = fetch(tmp_path, site, package(zipped(RECBOLE)))
    assert pl.read_parquet(fetched.catalogue).rows() == FILMS
    assert "recbole" in fetched.source.read_text()


def test_where_no_source_answers_both_reasons_and_a_way_on_are_named(tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        fetch(tmp_path / "out", unreachable, no_package)
    for part in ("no route to host", "pip has no index", "re4 data prepare --events"):
        assert part in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(FetchError, match="not hold MovieLens"):
        fetch(tmp_path / "out", unreachable, package(b"not a wheel"))


def test_a_destination_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("kept")
    with pytest.raises(DataError, match="choose another --out"):
        fetch(tmp_path / "out", Site(zipped(GROUPLENS)), no_package)
    assert (tmp_path / "out").read_text() == "kept"


def test_a_download_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with pytest.raises(FetchError, match="ended after 3 of 5 bytes"):
        download("https://a", file, Site(b"abc", length=5))
    assert not file.exists()
    content = bytes(range(256)) * 1000
    download("https://a", file, Site(content))
    assert file.read_bytes() == content
    download("https://a", tmp_path / "unsized", lambda address, first_byte=0: FakeResponse(b"abc", None))
    assert (tmp_path / "unsized").read_bytes() == b"abc"


@pytest.mark.parametrize("address", ["file:///etc/hostname", "http://example.org/a.zip"])
def test_only_https_is_opened(address: str) -> None:
    with pytest.raises(ValueError, match="https"):
        open_address(address)


def test_this_interpreters_pip_runs_and_its_failure_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$@" > "$(dirname "$0")/arguments"\necho "no such package" >&2\nexit 1\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(download_module.sys, "executable", str(python))
    with pytest.raises(FetchError, match=r"pip could not download thing==1: no such package"):
        get_package("thing==1", tmp_path)
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:3] == ["-m", "pip", "download"]
    assert "--no-deps" in arguments
    assert arguments[-1] == "thing==1"
    python.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(FetchError, match="0 wheels"):
        get_package("thing==1", tmp_path)
    python.unlink()
    with pytest.raises(FetchError, match="could not download"):
        get_package("thing==1", tmp_path)


def test_data_sets_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'netflix'.*ml-100k"):
        fetch_module.fetch("netflix", tmp_path)
    made = Fetched(events=tmp_path / "e", catalogue=tmp_path / "c", source=tmp_path / "s")
    monkeypatch.setattr(fetch_module, "DATA_SETS", {"other": lambda out, opener, get: made})
    assert fetch_module.fetch("other", tmp_path) is made
