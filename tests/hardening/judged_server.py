"""A server, the files that it follows, and the checks of its answers and of its resources.

The checks know from the files that were written so far which version, hidden items and tokens are valid.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from damaged_versions import point_current_at
from faults import Faults
from moved_clock import MovedClock
from running_server import DEADLINE_S, RunningServer, open_files
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.hidden_ids import HiddenIds, write_hidden
from re4.bundle.layout import CANARY
from re4.common.errors import Re4Error, ServerError
from re4.serving.auth.tokens import token_hash
from re4.serving.client.connection import Connection

NUM_WORKERS = 2
IN_A_ROW = 16
"""Right answers by as many new connections, which meet both workers all but surely."""
HISTORY = [4, 9, 30]
NUM_CANDIDATES = 10
WORKER_TIMEOUT_S = "4"
CHECK_TIMEOUT_S = "30"
MORE_DESCRIPTORS = 6
"""Of the supervisor, beside those at its start: pipes of a check and of the process that measures recall."""
MORE_WORKER_DESCRIPTORS = 60
"""Of a worker, beside those at its start: connections that are closing, and a version that is loaded."""
CHECK_DEADLINE_S = 3 * DEADLINE_S
"""A busy machine starts a worker within seconds, and backoff delays the next try by up to half a minute."""
DEFECTS = ("never retrieved", "Unknown child process", "was never awaited", "Exception in callback")
"""Words of asyncio in the log for an error that nobody handles."""


def write_by_rename(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}-new")
    new.write_bytes(content)
    new.replace(path)


class JudgedServer:
    """A server with two workers, under the load of one caller."""

    def __init__(self, transport: str) -> None:
        self._transport = transport
        self._folder = TemporaryDirectory()
        self.home = Path(self._folder.name)
        self.bundles = self.home / "followed" / "bundles"
        self.bundles.mkdir(parents=True)
        self.temporary = self.home / "temporary"
        self.temporary.mkdir()
        self.tokens = self.home / "followed" / "tokens.toml"
        self.faults = Faults(self.home, self.home / "followed")
        self.clock = MovedClock(self.home / "day")
        self.versions: dict[str, SmallVersion] = {}
        self.hidden: list[int] = []
        self.hidden_before: list[list[int]] = []
        self.canary = ""
        """The version of a good `CANARY`; empty where there is none."""
        self.canary_share, self.is_shadow = 0.0, False
        self.num_tokens = 0
        self.is_token_file_good = True
        self.wrong: list[str] = []
        self.held = ""
        self.num_answers = 0
        self.publish_good()
        self.write_good_tokens()
        self.start()
        self._stop = threading.Event()
        self._caller = threading.Thread(target=self._keep_calling)
        self._caller.start()

    def start(self) -> None:
        server = RunningServer(
            self.bundles,
            *("--num-processes", str(NUM_WORKERS), "--poll-interval-s", "0.05", "--tokens", str(self.tokens)),
            *("--worker-timeout-s", WORKER_TIMEOUT_S, "--check-timeout-s", CHECK_TIMEOUT_S, "--grace-s", "1"),
            *("--metrics-address", "127.0.0.1:0", "--recall-sample", "1", "--access-log", "off"),
            *("--transport", self._transport),
            env={
                "PYTHONPATH": f"{self.home}:{os.environ.get('PYTHONPATH') or Path(__file__).parents[2]}",
                "TMPDIR": str(self.temporary),
                **self.clock.environment,
            },
        )
        server.__enter__()
        self.server = server
        self.page = self.server.wait_for(r"metrics on (\S+)").group(1)
        self._num_descriptors = len(open_files(self.server.pid))
        self._num_worker_descriptors = max(len(open_files(pid)) for pid in self.workers())
        self._folders = len(list(self.temporary.iterdir()))

    def close(self) -> None:
        """Stop the caller and the server."""
        self.faults.off()
        self._stop.set()
        self._caller.join()
        with suppress(ProcessLookupError):
            self.server.signal(signal.SIGCONT)
        try:
            assert self.server.stop() == 0
            assert list(self.temporary.iterdir()) == []
        finally:
            self.server._process.kill()
            self._folder.cleanup()

    # The files.

    def publish_good(self) -> None:
        self.expected = self._made()
        point_current_at(self.bundles, self.expected)

    def _made(self) -> str:
        """A new version in the directory, which is not live."""
        version = SmallVersion(seed=len(self.versions))
        elsewhere = self.home / f"made-{len(self.versions)}"
        name = version.publish(elsewhere)
        self.versions[name] = version
        (elsewhere / name).rename(self.bundles / name)
        return name

    def begin_canary(self, share: float, is_shadow: bool) -> None:
        self.canary, self.canary_share, self.is_shadow = self._made(), share, is_shadow
        facts = {"schema_version": 1, "version": self.canary, "share": share, "is_shadow": is_shadow}
        write_by_rename(self.bundles / CANARY, json.dumps(facts).encode())

    def _answering(self) -> set[str]:
        """The versions that may answer."""
        if not self.canary or self.is_shadow:
            return {self.expected}
        return {self.canary} if self.canary_share == 1 else {self.expected, self.canary}

    def hide_good(self, rows: list[int]) -> None:
        self.hidden_before.append(self.hidden)
        self.hidden = rows
        ids = self.versions[self.expected].ids
        write_hidden(self.bundles, HiddenIds(ids=tuple(str(ids[row]) for row in rows)))

    def write_good_tokens(self) -> None:
        self.num_tokens += 1
        content = f'[ranking]\nsha256 = "{token_hash(self.token).hex()}"\n'
        write_by_rename(self.tokens, content.encode())
        self.is_token_file_good = True

    @property
    def token(self) -> str:
        return f"token-{self.num_tokens}"

    # The calls.

    def client(self, token: str | None = None) -> RetrievalClient:
        return RetrievalClient(
            self.server.address, timeout_s=2.0, connection=Connection(token=token or self.token)
        )

    def retrieve(self, client: RetrievalClient) -> Any:
        return client.retrieve([f"item-{row}-é" for row in HISTORY], NUM_CANDIDATES)

    def _is_right(self, version: str, item_ids: Any, hidden: list[int]) -> bool:
        made = self.versions[version]
        return list(item_ids) == [made.ids[row] for row in made.best(HISTORY, NUM_CANDIDATES, hidden)]

    def _keep_calling(self) -> None:
        """Any error is allowed at any time; a wrong answer never is."""
        while not self._stop.is_set():
            with suppress(Re4Error), self.client() as client:
                while not self._stop.wait(0.005):
                    allowed = [self.hidden, *self.hidden_before]  # as the call begins
                    found = self.retrieve(client)
                    allowed += [self.hidden, *self.hidden_before]
                    self.num_answers += 1
                    if not any(self._is_right(found.version, found.item_ids, each) for each in allowed):
                        self.wrong.append(f"{found.version}: {found.item_ids}, hidden: {allowed}")

    # The checks.

    def check(self) -> None:
        """Check everything; each state may take its time."""
        self.until(self._answers_right, "no right answer")
        self.until(self._holds_no_more, "too much is held")
        if self.is_token_file_good and self.num_tokens > 1:
            self.until(self._rejects_the_old_token, "a revoked token is valid")
        with urlopen(self.page, timeout=DEADLINE_S) as answer:
            assert b"re4_worker" in answer.read()
        assert not self.wrong
        assert not [word for word in DEFECTS if word in self.server.log], self.server.log[-8000:]
        self.hidden_before.clear()

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + CHECK_DEADLINE_S
        while not is_so():
            assert self.has_not_ended, f"the server ended:\n{self.server.log[-4000:]}"
            if time.monotonic() > until:
                held = [(pid, len(open_files(pid))) for pid in (self.server.pid, *self.children())]
                raise AssertionError(
                    f"{what} ({self.held}); descriptors {held}; the log:\n{self.server.log[-6000:]}"
                )
            time.sleep(0.02)

    @property
    def has_not_ended(self) -> bool:
        return self.server._process.poll() is None

    def _answers_right(self) -> bool:
        for _ in range(IN_A_ROW):
            try:
                with self.client() as client:
                    found = self.retrieve(client)
            except Re4Error:
                return False
            if found.version not in self._answering() or not self._is_right(
                found.version, found.item_ids, self.hidden
            ):
                return False
        return True

    def _rejects_the_old_token(self) -> bool:
        for _ in range(IN_A_ROW):
            try:
                with self.client(f"token-{self.num_tokens - 1}") as client:
                    client.info()
                return False
            except ServerError as error:
                if "UNAUTHENTICATED" not in str(error):
                    return False
        return True

    def _holds_no_more(self) -> bool:
        """Workers and the process for recall, a few pipes for them, and only the live version mapped."""
        self.held = self._held()
        return not self.held

    def _held(self) -> str:
        """What the server holds beyond the start; empty for nothing."""
        workers, num_children = self.workers(), len(self.children())
        if len(workers) != NUM_WORKERS or num_children > NUM_WORKERS + 1:
            return f"{len(workers)} workers, {num_children} processes"
        if len(open_files(self.server.pid)) > self._num_descriptors + MORE_DESCRIPTORS:
            return f"descriptors of the server: {sorted(open_files(self.server.pid))}"
        if len(list(self.temporary.iterdir())) > self._folders:
            return f"temporary files: {sorted(path.name for path in self.temporary.iterdir())}"
        with suppress(OSError):
            for worker in workers:
                if len(open_files(worker)) > self._num_worker_descriptors + MORE_WORKER_DESCRIPTORS:
                    return f"descriptors of worker {worker}: {sorted(open_files(worker))}"
                maps = Path(f"/proc/{worker}/maps").read_text()
                old = [
                    name
                    for name in self.versions
                    if name not in (self.expected, self.canary) and name in maps
                ]
                if old:
                    return f"worker {worker} maps {old}"
        return ""

    # The processes.

    def workers(self) -> list[int]:
        return self.children(b"processes.worker")

    def children(self, word: bytes = b"") -> list[int]:
        return sorted(self.server.children(word))

    def supervisor_ended(self) -> int:
        """Wait until no process of the ended server is left, and start it again; return its exit code."""
        code = self.server.wait()  # its log ends with the last process that writes to it
        # A server that starts must be able to read all three; a running one keeps the last good ones.
        point_current_at(self.bundles, self.expected)
        self.hide_good(self.hidden)
        self.write_good_tokens()
        folders = self._folders
        self.start()
        assert self._folders <= folders, list(self.temporary.iterdir())
        return code
