"""The public data sets that can be fetched by name.

A new one is one file like `gowalla.py` and one line in `DATA_SETS`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from re4.errors import UsageError
from training.data import ml_100k
from training.data.amazon_books import AMAZON_BOOKS
from training.data.download import Fetched, Opener, PackageGetter, get_package, open_address
from training.data.gowalla import GOWALLA
from training.data.ml_1m import ML_1M
from training.data.public_log import PublicLog, fetch_log


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
