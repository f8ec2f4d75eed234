"""SIGHUP, as `systemctl reload` sends it: every followed file is read again now, and nothing ends."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority, Pair
from running_server import RunningServer
from small_bundles import SmallVersion

from re4 import Connection, RetrievalClient
from re4.bundle.hidden_ids import HiddenIds, write_hidden
from re4.bundle.layout import VECTORS
from re4.common.errors import ServerError
from re4.serving.auth.tokens import token_hash

HISTORY = ["item-4-é", "item-9-é"]


@dataclass
class Followed:
    """A server that polls once an hour, and its files."""

    server: RunningServer
    bundles: Path
    tokens: Path
    pair: Pair
    authority: Authority

    def write_token(self, token: str) -> None:
        write_token(self.tokens, token)

    def hang_up(self, *lines: str) -> None:
        """Send SIGHUP and wait for lines of the log, for each of the two workers where they name a worker."""
        seen = self.server.num_lines
        self.server.signal(signal.SIGHUP)
        for line in lines:
            for number in (1, 2) if "worker N" in line else (0,):
                self.server.wait_for(line.replace("N", str(number), 1) if number else line, after=seen)

    def version(self, token: str) -> str:
        connection = Connection(ca=self.authority.path.read_bytes(), is_tls=True, token=token)
        with RetrievalClient(self.server.address, connection=connection) as client:
            return client.retrieve(HISTORY, 60).version


def write_token(path: Path, token: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(f'[ranking]\nsha256 = "{token_hash(token).hex()}"\n')
    new.replace(path)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    folder = tmp_path_factory.mktemp("followed")
    authority = Authority(folder)
    pair, tokens, bundles = authority.issue(), folder / "tokens.toml", folder / "bundles"
    SmallVersion().publish(bundles)
    write_token(tokens, "first")
    options = ("--num-processes", "2", "--poll-interval-s", "3600", "--tokens", str(tokens))
    tls = ("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key))
    with RunningServer(bundles, *options, *tls) as server:
        yield Followed(server, bundles, tokens, pair, authority)


def test_it_reads_every_file_now(followed: Followed) -> None:
    name = SmallVersion(seed=1).publish(followed.bundles)
    write_hidden(followed.bundles, HiddenIds(ids=("item-7-é",)))
    followed.write_token("second")
    followed.pair.replace(followed.authority.issue())
    workers = followed.server.workers()
    followed.hang_up(
        "SIGHUP: reading CURRENT, HIDDEN, CANARY, LIVE, tokens and certificates again",
        "hidden items: 1 from now on",
        "worker N: tokens read again",
        f"worker N: serving {name}",
    )
    seen = followed.server.num_lines
    assert followed.version("second") == name
    followed.server.wait_for(r"worker \d: reloaded", after=seen - 1)
    with pytest.raises(ServerError, match="UNAUTHENTICATED"):
        followed.version("first")
    assert followed.server.workers() == workers
    followed.write_token("first")
    followed.hang_up("worker N: tokens read again")


def test_a_bad_file_is_logged_each_time_and_changes_nothing(followed: Followed) -> None:
    followed.tokens.write_text("no tokens")
    for _ in range(2):
        followed.hang_up("worker N: the tokens known so far stay")
    assert followed.version("first")
    followed.write_token("first")
    followed.hang_up("worker N: tokens read again")


def test_a_refused_version_that_was_repaired_is_checked_again(followed: Followed) -> None:
    name = SmallVersion(seed=2).publish(followed.bundles)
    vectors = followed.bundles / name / VECTORS
    content = vectors.read_bytes()
    vectors.write_bytes(content[:-1] + b"\x07")
    followed.hang_up(f"version {name} refused")
    vectors.write_bytes(content)
    followed.hang_up(f"worker N: serving {name}")
    assert followed.version("first") == name


def test_one_to_a_worker_has_no_effect(followed: Followed) -> None:
    workers = followed.server.workers()
    for worker in workers:
        os.kill(worker, signal.SIGHUP)
    followed.hang_up("worker N: tokens read again")
    assert followed.server.workers() == workers
