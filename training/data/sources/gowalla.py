"""Gowalla: 6.4 million check-ins at places, February 2009 to October 2010. One check-in a line, by tabs."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from re4.training.data.sources.public_log import Event, PublicLog

TERMS: Final = """\
Check-ins of the social network Gowalla, collected by E. Cho, S. A. Myers and J. Leskovec (SNAP).

Terms of use: SNAP gives it for research, see https://snap.stanford.edu/data/loc-Gowalla.html
In publications, cite: E. Cho, S. A. Myers, J. Leskovec. 2011. Friendship and Mobility: User Movement in
Location-Based Social Networks. KDD 2011.
"""


def read_events(archive: Path) -> Iterator[Event]:
    """Read user, place and time of each check-in: user, time, latitude, longitude, place."""
    with gzip.open(archive, "rt", encoding="utf-8") as lines:
        for line in lines:
            user, time, _, _, place = line.rstrip("\n").split("\t")
            yield user, place, time


GOWALLA: Final = PublicLog(
    name="gowalla",
    address="https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
    terms=TERMS,
    read_events=read_events,
    # Papers keep users and places with ten and more check-ins.
    prepare_options="--min-events 10",
)
