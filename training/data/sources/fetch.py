"""The public data sets that can be fetched by name.

A new one is one file like `gowalla.py` and one line in `DATA_SETS`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from re4.common.errors import UsageError
from re4.training.data.sources import ml_100k
from re4.training.data.sources.amazon_books import AMAZON_BOOKS
from re4.training.data.sources.download import Fetched, Opener, PackageGetter, get_package, open_address
from re4.training.data.sources.gowalla import GOWALLA
from re4.training.data.sources.ml_1m import ML_1M
from re4.training.data.sources.public_log import PublicLog, fetch_log


def _fetcher(log: PublicLog) -> Callable[[Path, Opener, PackageGetter], Fetched]:
    return lambda out, opener, _: fetch_log(log, out, opener)


DATA_SETS: Mapping[str, Callable[[Path, Opener, PackageGetter], Fetched]] = {
    "ml-100k": ml_100k.fetch,
    **{log.name: _fetcher(log) for log in (ML_1M, AMAZON_BOOKS, GOWALLA)},
}


def fetch(name: str, out: Path) -> Fetched:
    """Fetch a public data set into the folder `out`; if it is there already, leave it as it is.

    Raises:
        UsageError: There is no data set of this name.
        FetchError: None of its sources answered with what was expected.
    """
    if name not in DATA_SETS:
        raise UsageError(f"no data set is called {name!r}; these can be fetched: {', '.join(DATA_SETS)}")
    return DATA_SETS[name](out, open_address, get_package)
