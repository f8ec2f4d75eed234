"""Amazon Books: 8.9 million reviews until 2014, by users with five and more, of books with five and
more.

The data set of ComiRec's and Re4's tables: 603,668 users, 367,982 items, 8,898,041 events. A JSON
object a line.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from re4.training.data.sources.public_log import Counts, Event, PublicLog

TERMS: Final = """\
Amazon product reviews, category Books, 5-core, May 1996 to July 2014, collected by Julian McAuley and others.

Terms of use, in short (what holds is what https://jmcauley.ucsd.edu/data/amazon/ says):
- for research; the reviews belong to those who wrote them and to Amazon
- in publications, cite: R. He and J. McAuley. 2016. Ups and Downs: Modeling the Visual Evolution of Fashion
  Trends with One-Class Collaborative Filtering. WWW 2016.
"""


def read_events(archive: Path) -> Iterator[Event]:
    """Read reviewer, book (ASIN) and time (seconds) of each review."""
    with gzip.open(archive, "rt", encoding="utf-8") as lines:
        for line in lines:
            review = json.loads(line)
            yield review["reviewerID"], review["asin"], str(int(review["unixReviewTime"]))


AMAZON_BOOKS: Final = PublicLog(
    name="amazon-books",
    address="https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_Books_5.json.gz",
    terms=TERMS,
    read_events=read_events,
    counts=Counts(num_users=603_668, num_items=367_982, num_events=8_898_041),
)
