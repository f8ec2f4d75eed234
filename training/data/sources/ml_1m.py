"""MovieLens-1M: 1,000,209 ratings of 3,706 films by 6,040 users, in 2000, with titles and genres."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from re4.training.data.sources.ml_100k import split_title
from re4.training.data.sources.public_log import Counts, Event, PublicLog

TERMS: Final = """\
MovieLens-1M, collected by the GroupLens Research Project at the University of Minnesota.

Terms of use, in short (what holds is its README, at https://grouplens.org/datasets/movielens/1m/):
- for research; commercial use needs GroupLens' permission first
- do not pass the data on without their separate permission: keep it out of repositories, images and bundles
- do not suggest that GroupLens or the university endorse your work
- in publications, cite: F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and
  Context. ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872
"""


def read_events(archive: Path) -> Iterator[Event]:
    """Read user, film and time (seconds) of each rating: user, film, rating, time."""
    for line in _lines(archive, "ml-1m/ratings.dat"):
        user, item, _, timestamp = line.split("::")
        yield user, item, timestamp


def write_catalogue(archive: Path, file: Path) -> None:
    """Write item, title, year (null where unknown) and genres (a list)."""
    films = []
    for line in _lines(archive, "ml-1m/movies.dat"):
        item, title, genres = line.split("::")
        films.append((int(item), *split_title(title), genres.split("|")))
    schema = pl.Schema(
        {"item": pl.Int64(), "title": pl.String(), "year": pl.Int64(), "genres": pl.List(pl.String())}
    )
    pl.DataFrame(films, schema=schema, orient="row").write_parquet(file)


def _lines(archive: Path, name: str) -> Iterator[str]:
    try:
        with zipfile.ZipFile(archive) as files, files.open(name) as stream:
            yield from (line.rstrip("\n") for line in io.TextIOWrapper(stream, "latin-1"))
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error


ML_1M: Final = PublicLog(
    name="ml-1m",
    address="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    md5_address="https://files.grouplens.org/datasets/movielens/ml-1m.zip.md5",
    terms=TERMS,
    read_events=read_events,
    write_catalogue=write_catalogue,
    counts=Counts(num_users=6_040, num_items=3_706, num_events=1_000_209),
)
