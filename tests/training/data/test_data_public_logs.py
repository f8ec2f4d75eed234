"""Public data sets from a local server with files of their format: resumed, checked, prepared."""

import gzip
import hashlib
import io
import json
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest

from re4.common.errors import FetchError
from re4.training.data.sources.amazon_books import AMAZON_BOOKS
from re4.training.data.sources.download import open_web
from re4.training.data.sources.fetch import DATA_SETS
from re4.training.data.sources.gowalla import GOWALLA
from re4.training.data.sources.ml_1m import ML_1M
from re4.training.data.sources.public_log import Counts, fetch_log


class Site:
    """Serves files by name over HTTP; `break_after` cuts the next answer short, `requests` has the ranges."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: int | None = None
        self.knows_ranges = True
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
                site.requests.append((name, wanted))
                content, start = site.files[name], 0
                if wanted and site.knows_ranges:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                stop, site.break_after = site.break_after, None
                self.wfile.write(content[start : len(content) if stop is None else start + stop])
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def opener(self, address, first_byte=0):
        name = address.rpartition("/")[2]
        return open_web(f"http://127.0.0.1:{self.server.server_port}/{name}", first_byte)

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site():
    running = Site()
    yield running
    running.stop()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


REVIEWS = [
    {
        "reviewerID": f"A{user}",
        "asin": f"000{item}",
        "unixReviewTime": 1_000_000 + user,
        "reviewText": "x" * 99,
    }
    for user in range(40)
    for item in range(user % 3, 9)
]
SMALL_BOOKS = replace(AMAZON_BOOKS, counts=Counts(num_users=40, num_items=9, num_events=len(REVIEWS)))
BOOKS = gzip.compress("".join(json.dumps(review) + "\n" for review in REVIEWS).encode(), mtime=0)
RATINGS = {
    "ml-1m/ratings.dat": b"1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n",
    "ml-1m/movies.dat": "661::James and the Giant Peach (1996)::Animation|Children's\n"
    "1193::Mis\xe9rables, Les (1995)::Drama\n".encode("latin-1"),
}
SMALL_ML_1M = replace(ML_1M, counts=Counts(num_users=2, num_items=2, num_events=3))


def test_ratings_with_titles_and_the_sites_own_checksum(site, tmp_path):
    archive = zipped(RATINGS)
    site.files["ml-1m.zip"] = archive
    site.files["ml-1m.zip.md5"] = f"MD5 (ml-1m.zip) = {hashlib.md5(archive).hexdigest()}\n".encode()
    fetched = fetch_log(SMALL_ML_1M, tmp_path, site.opener)
    assert fetched.events.read_text().splitlines()[:2] == ["user,item,timestamp", "1,1193,978300760"]
    assert pl.read_parquet(fetched.catalogue).rows() == [
        (661, "James and the Giant Peach", 1996, ["Animation", "Children's"]),
        (1193, "Mis\xe9rables, Les", 1995, ["Drama"]),
    ]
    assert "GroupLens" in fetched.source.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "SOURCE.txt",
        "catalogue.parquet",
        "events.csv",
    ]
    num_requests = len(site.requests)
    assert fetch_log(SMALL_ML_1M, tmp_path, site.opener) == fetched
    assert len(site.requests) == num_requests, "what is there is not fetched again"


def test_a_wrong_checksum_leaves_nothing_to_be_taken_for_the_data(site, tmp_path):
    site.files["ml-1m.zip"], site.files["ml-1m.zip.md5"] = zipped(RATINGS), b"0" * 32
    with pytest.raises(FetchError, match="its site says 0000"):
        fetch_log(SMALL_ML_1M, tmp_path, site.opener)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_is_resumed(site, tmp_path, knows_ranges):
    site.files["reviews_Books_5.json.gz"] = BOOKS
    site.knows_ranges, site.break_after = knows_ranges, 300
    with pytest.raises(FetchError, match=r"ended after 300 of|IncompleteRead|try again"):
        fetch_log(SMALL_BOOKS, tmp_path, site.opener)
    assert (tmp_path / "reviews_Books_5.json.gz.part").stat().st_size == 300
    events = pl.read_csv(fetch_log(SMALL_BOOKS, tmp_path, site.opener).events, infer_schema=False)
    assert site.requests[-1] == ("reviews_Books_5.json.gz", "bytes=300-")
    assert events["item"].to_list() == [review["asin"] for review in REVIEWS]
    assert events["user"].n_unique() == 40
    assert sorted(file.name for file in tmp_path.iterdir()) == ["SOURCE.txt", "events.csv"]


def test_another_count_than_the_published_one_is_refused(site, tmp_path):
    site.files["reviews_Books_5.json.gz"] = BOOKS
    with pytest.raises(FetchError, match=r"num_users=40.*num_users=603668"):
        fetch_log(AMAZON_BOOKS, tmp_path, site.opener)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"<html>sign in</html>",
        BOOKS[:-40],
        gzip.compress(b'{"a": 1}\n', mtime=0),
        gzip.compress(b"", mtime=0),
    ],
)
def test_a_file_that_is_something_else_is_refused_and_removed(site, tmp_path, content):
    site.files["reviews_Books_5.json.gz"] = content
    with pytest.raises(FetchError, match="try again"):
        fetch_log(SMALL_BOOKS, tmp_path, site.opener)
    assert list(tmp_path.iterdir()) == [], "nothing stays that a later try would take for the data"


def test_check_ins(site, tmp_path):
    lines = "0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t22847\n0\t2010-10-18T22:17:43Z\t30.2\t-97.7\t420315\n"
    site.files["loc-gowalla_totalCheckins.txt.gz"] = gzip.compress(lines.encode())
    fetched = fetch_log(GOWALLA, tmp_path, site.opener)
    assert fetched.events.read_text().splitlines()[1] == "0,22847,2010-10-19T23:55:27Z"
    assert fetched.catalogue is None
    assert fetched.prepare_options == "--min-events 10"


def test_every_set_has_a_name_and_an_https_address():
    assert set(DATA_SETS) == {"ml-100k", "ml-1m", "amazon-books", "gowalla"}
    for log in (ML_1M, AMAZON_BOOKS, GOWALLA):
        assert log.address.startswith("https://")
