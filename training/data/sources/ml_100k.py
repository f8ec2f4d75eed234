"""MovieLens-100k: 100,000 ratings of 1,682 films by 943 users, 1997 to 1998, with titles.

The source is GroupLens, its authors; if their site cannot be reached, a copy of another layout in
the wheel of the package RecBole. Both result in the same files.
"""

import logging
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from re4.common.errors import FetchError
from re4.common.file_lock import staging_folder
from re4.training.data.sources.download import Fetched, Opener, PackageGetter, download

_log = logging.getLogger(__name__)

ADDRESS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
PACKAGE = "recbole==1.2.1"
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The genres, in the order of the flags in GroupLens' file."""

TERMS = """\
MovieLens-100k, collected by the GroupLens Research Project at the University of Minnesota.

Terms of use, in short (what holds is its README, at https://grouplens.org/datasets/movielens/100k/):
- for research; commercial use needs GroupLens' permission first
- do not pass the data on without their separate permission: keep it out of repositories, images and bundles
- do not suggest that GroupLens or the university endorse your work
- in publications, cite: F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and
  Context. ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872
"""

_TITLE = re.compile(r"(?P<title>.*?)\s*\((?P<year>\d{4})\)(?:\s*\(V\))?")
_MAX_BYTES = 64 << 20  # far above any file of the data set; a zip that claims more is not it


@dataclass(frozen=True, kw_only=True)
class _Content:
    events: list[tuple[int, int, int, int]]
    """user, item, timestamp, rating"""
    films: list[tuple[int, str, int | None, list[str]]]
    """item, title, year, genres"""


def fetch(out: Path, opener: Opener, get_package: PackageGetter) -> Fetched:
    """Fetch the data set into the folder `out`; if it is there already, leave it as it is.

    `events.csv` has columns user, item, timestamp (seconds) and rating (1 to 5);
    `catalogue.parquet` has item, title, year (null where unknown) and genres (a list).

    Raises:
        FetchError: Neither source answered with what was expected.
    """
    events, catalogue, source_file = files = (
        out / "events.csv",
        out / "catalogue.parquet",
        out / "SOURCE.txt",
    )
    fetched = Fetched(events=events, catalogue=catalogue, source=source_file)
    if all(file.is_file() for file in files):
        _log.info(f"ml-100k is in {out} already")
        return fetched
    try:
        out.mkdir(parents=True, exist_ok=True)
        with staging_folder(out, ".fetching-") as folder:
            content, source = _from_any_source(folder, opener, get_package)
            new = {file: folder / file.name for file in files}
            _write_events(new[events], content)
            _write_catalogue(new[catalogue], content)
            new[source_file].write_text(f"{TERMS}\n{source}\n", encoding="utf-8")
            for file in files:
                new[file].rename(file)
    except OSError as error:
        raise FetchError(f"{out} cannot be written: {error}; choose another --out") from error
    return fetched


def _from_any_source(folder: Path, opener: Opener, get_package: PackageGetter) -> tuple[_Content, str]:
    try:
        archive = folder / "ml-100k.zip"
        download(ADDRESS, archive, opener)
        return _read(archive, _read_grouplens), f"Source of these files: {ADDRESS}"
    except (OSError, FetchError) as error:
        why = f"{ADDRESS} could not be used: {error}"
    _log.info(f"{why}; taking the copy in the package {PACKAGE}")
    try:
        content = _read(get_package(PACKAGE, folder), _read_recbole)
    except (OSError, FetchError) as error:
        raise FetchError(
            f"ml-100k could not be fetched. {why}. The package {PACKAGE}: {error}. Check the network "
            "and try again, or prepare your own events with `re4 data prepare --events FILE`"
        ) from error
    return content, f"Source of these files: the copy in the Python package {PACKAGE}, because {why}"


def _read(archive: Path, layout: Callable[[zipfile.ZipFile], _Content]) -> _Content:
    try:
        with zipfile.ZipFile(archive) as files:
            content = layout(files)
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError) as error:
        raise FetchError(f"{archive.name} does not hold MovieLens-100k as expected ({error!r})") from error
    if not content.events or not content.films:
        raise FetchError(f"{archive.name} holds no events or no films")
    return content


def _read_grouplens(files: zipfile.ZipFile) -> _Content:
    """Read `u.data` (user, item, rating, timestamp) and `u.item` (…|title (year)|…|19 genre flags)."""
    events, films = [], []
    for line in _lines(files, "ml-100k/u.data", "utf-8"):
        user, item, rating, timestamp = line.split("\t")
        events.append((int(user), int(item), int(timestamp), int(rating)))
    for line in _lines(files, "ml-100k/u.item", "latin-1"):
        item, title, *_, flags = line.split("|", maxsplit=5)
        genres = [genre for genre, flag in zip(GENRES, flags.split("|"), strict=True) if flag == "1"]
        films.append((int(item), *split_title(title), genres))
    return _Content(events=events, films=films)


def _read_recbole(files: zipfile.ZipFile) -> _Content:
    """Read `.inter` (user, item, rating, timestamp) and `.item` (item, title, year, genres), with headers."""
    folder = "recbole/dataset_example/ml-100k"
    events, films = [], []
    for line in _lines(files, f"{folder}/ml-100k.inter", "utf-8")[1:]:
        user, item, rating, timestamp = line.split("\t")
        events.append((int(user), int(item), int(float(timestamp)), int(float(rating))))
    for line in _lines(files, f"{folder}/ml-100k.item", "utf-8")[1:]:
        item, title, year, genres = line.split("\t")
        # This copy misspells "unknown" and takes whatever stands in the last brackets for the year.
        whole = "unknown" if title == "unkonwn" else f"{title} ({year})"
        films.append((int(item), *split_title(whole), genres.split()))
    return _Content(events=events, films=films)


def _lines(files: zipfile.ZipFile, name: str, encoding: str) -> list[str]:
    size = files.getinfo(name).file_size
    if size > _MAX_BYTES:
        raise ValueError(f"{name} would unpack to {size:,} bytes")
    return [line for line in files.read(name).decode(encoding).split("\n") if line]


def split_title(text: str) -> tuple[str, int | None]:
    """Split `Toy Story (1995)` into title and year; `(V)`, made for video, may follow the year."""
    found = _TITLE.fullmatch(text.strip())
    return (found["title"], int(found["year"])) if found else (text.strip(), None)


def _write_events(file: Path, content: _Content) -> None:
    frame = pl.DataFrame(content.events, schema=["user", "item", "timestamp", "rating"], orient="row")
    frame.write_csv(file)


def _write_catalogue(file: Path, content: _Content) -> None:
    schema = pl.Schema(
        {"item": pl.Int64(), "title": pl.String(), "year": pl.Int64(), "genres": pl.List(pl.String())}
    )
    pl.DataFrame(content.films, schema=schema, orient="row").write_parquet(file)
