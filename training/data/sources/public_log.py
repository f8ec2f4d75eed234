"""Fetch a public event log that is one compressed file on its authors' site: download, check, write
as csv.

Each data set is a file beside this one, with its address and the reader of its lines. The
compressed file stays until its events are written, so that an interrupted fetch continues where it
stopped.
"""

import csv
import gzip
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from re4.common.console import progress
from re4.common.errors import FetchError
from re4.common.files import replacing
from re4.training.data.sources.download import Fetched, Opener, download, read_small

_log = logging.getLogger(__name__)

Event = tuple[str, str, str]
"""User, item, timestamp, as text."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The published counts of a data set."""

    num_users: int
    num_items: int
    num_events: int


@dataclass(frozen=True, kw_only=True)
class PublicLog:
    """One data set: its address and its reader."""

    name: str
    """The name in `re4 data fetch`."""
    address: str
    """The address of the compressed file."""
    md5_address: str | None = None
    """The address of its checksum, if there is one."""
    terms: str
    """Licence and citation, as text."""
    read_events: Callable[[Path], Iterable[Event]]
    """Reads the compressed file, event by event; raises ValueError or KeyError for another file."""
    write_catalogue: Callable[[Path, Path], None] | None = None
    """Writes the items' descriptions, parquet, from the compressed file; None where it has none."""
    counts: Counts | None = None
    """The counts that the log must have; None where none are published."""
    prepare_options: str = ""
    """As in `Fetched`."""


def fetch_log(log: PublicLog, out: Path, opener: Opener) -> Fetched:
    """Fetch a data set into the folder `out`; if it is there already, leave it as it is.

    Raises:
        FetchError: The site does not answer, or with something else than expected.
    """
    fetched = Fetched(
        events=out / "events.csv",
        catalogue=out / "catalogue.parquet" if log.write_catalogue else None,
        source=out / "SOURCE.txt",
        prepare_options=log.prepare_options,
    )
    if fetched.source.is_file():  # it is written last
        _log.info(f"{log.name} is in {out} already")
        return fetched
    archive = out / log.address.rpartition("/")[2]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not archive.exists():
            download(log.address, archive, opener, md5=_md5_of(log, opener))
        _write_events(log, archive, fetched.events)
        if log.write_catalogue and fetched.catalogue:
            with replacing(fetched.catalogue) as part:
                log.write_catalogue(archive, part)
        with replacing(fetched.source) as part:
            part.write_text(f"{log.terms}\nSource of these files: {log.address}\n", encoding="utf-8")
    except (ValueError, KeyError, IndexError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        archive.unlink(missing_ok=True)
        raise FetchError(
            f"{log.address} does not hold {log.name} as expected ({error!r}); it is removed, try again"
        ) from error
    except OSError as error:
        raise FetchError(
            f"{log.name} could not be fetched into {out}: {error}. Check the network and the disk, and try "
            "again: it continues where it stopped"
        ) from error
    archive.unlink()
    return fetched


def _md5_of(log: PublicLog, opener: Opener) -> str | None:
    """Read the checksum of the site: a line that begins or ends with 32 hexadecimal digits."""
    if log.md5_address is None:
        return None
    text = read_small(log.md5_address, opener)
    found = [word for word in text.replace("=", " ").split() if len(word) == 32 and word.isalnum()]
    if not found:
        raise ValueError(f"{log.md5_address} holds no MD5")
    return found[0].lower()


def _write_events(log: PublicLog, archive: Path, file: Path) -> None:
    users: set[str] = set()
    items: set[str] = set()
    num_events = 0
    total = log.counts.num_events if log.counts else None
    with (
        replacing(file) as part,
        part.open("w", encoding="utf-8", newline="") as stream,
        progress(f"writing {file.name}", total) as bar,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("user", "item", "timestamp"))
        for user, item, timestamp in _counted(log.read_events(archive), bar.advance):
            writer.writerow((user, item, timestamp))
            users.add(user)
            items.add(item)
            num_events += 1
        found = Counts(num_users=len(users), num_items=len(items), num_events=num_events)
        if not num_events or (log.counts and found != log.counts):
            raise ValueError(f"{found}, {log.counts} is known")


def _counted(events: Iterable[Event], advance: Callable[[int], None]) -> Iterator[Event]:
    """Yield the events, and report progress every thousand."""
    for number, event in enumerate(events):
        if number % 1000 == 999:
            advance(1000)
        yield event
