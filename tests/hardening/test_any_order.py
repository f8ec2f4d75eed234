"""Files, signals, stopped processes and transient errors in random order, while a client calls.

After each step the server must answer right, must have taken the newest good files by itself, and may hold no
more processes, descriptors or mapped versions than before.
"""

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import hypothesis.strategies as st
from damaged_versions import CHANGED_FILES, point_current_at, publish
from faults import Faults
from findings import Findings
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from running_server import DEADLINE_S, RunningServer, open_files
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.hidden_ids import HiddenIds, write_hidden
from re4.bundle.layout import CURRENT, HIDDEN
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
FAULT_S = 1.5
"""How long a fault stays where no call meets it."""
SIGNALS = sorted({*range(1, 65)} - {32, 33})  # these two are the C library's own
TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EAGAIN)

BAD_FILES: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"schema_version": 1, "ids": ["a',
    "no text": b"\xff\xfe\x00",
    "open brackets": b"[" * 200_000,
    "deep": b'{"schema_version": 1, "id_kind": "string", "ids": ' + b"[" * 900 + b"]" * 900 + b"}",
    "deep table": b"a = " + b"[" * 5000,
    "many digits": b"a = " + b"9" * 5000,
    "infinite": b"[ranking]\nusers_per_s = 1e400\n",
    "oversized": b" " * ((1 << 24) + 1),
}


def write_by_rename(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}-new")
    new.write_bytes(content)
    new.replace(path)


class Machine(RuleBasedStateMachine):
    """A server, and what it must do by the files that were written so far."""

    events: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.home = Path(self._folder.name)
        self.bundles = self.home / "followed" / "bundles"
        self.bundles.mkdir(parents=True)
        self.tokens = self.home / "followed" / "tokens.toml"
        self.faults = Faults(self.home, self.home / "followed")
        self.versions: dict[str, SmallVersion] = {}
        self.hidden: list[int] = []
        self.hidden_before: list[list[int]] = []
        self.num_tokens = 0
        self.is_token_file_good = True
        self.are_workers_replaced = False
        self.wrong: list[str] = []
        self.publish_good()
        self.write_good_tokens()
        self.server = RunningServer(
            self.bundles,
            *("--num-processes", str(NUM_WORKERS), "--poll-interval-s", "0.05", "--tokens", str(self.tokens)),
            *("--worker-timeout-s", WORKER_TIMEOUT_S, "--check-timeout-s", CHECK_TIMEOUT_S, "--grace-s", "1"),
            *("--metrics-address", "127.0.0.1:0", "--recall-sample", "1", "--access-log", "off"),
            env={"PYTHONPATH": f"{self.home}:{os.environ.get('PYTHONPATH') or Path(__file__).parents[2]}"},
        )
        self.server.__enter__()
        self.num_descriptors = len(open_files(self.server.pid))
        self._stop = threading.Event()
        self._caller = threading.Thread(target=self.keep_calling)
        self._caller.start()

    def teardown(self) -> None:
        self.faults.off()
        self._stop.set()
        self._caller.join()
        with suppress(ProcessLookupError):
            self.server.signal(signal.SIGCONT)
        assert self.server.stop() == 0
        self._folder.cleanup()

    # The files, good ones and others.

    def publish_good(self) -> str:
        version = SmallVersion(seed=len(self.versions))
        elsewhere = self.home / f"made-{len(self.versions)}"
        name = version.publish(elsewhere)
        self.versions[name] = version
        (elsewhere / name).rename(self.bundles / name)
        point_current_at(self.bundles, name)
        self.expected = name
        return name

    def hide_good(self, rows: list[int]) -> None:
        self.hidden_before.append(self.hidden)
        self.hidden = rows
        ids = self.versions[self.expected].ids
        write_hidden(self.bundles, HiddenIds(ids=tuple(str(ids[row]) for row in rows)))

    def write_good_tokens(self) -> None:
        self.num_tokens += 1
        content = f'[ranking]\nsha256 = "{token_hash(self.token).hex()}"\n'
        write_by_rename(self.tokens, content.encode())
        self.is_token_file_good, self.are_workers_replaced = True, False

    @property
    def token(self) -> str:
        return f"token-{self.num_tokens}"

    # The client.

    def client(self, token: str | None = None) -> RetrievalClient:
        return RetrievalClient(
            self.server.address, timeout_s=2.0, connection=Connection(token=token or self.token)
        )

    def is_right(self, version: str, item_ids: Any, hidden: list[int]) -> bool:
        made = self.versions[version]
        return list(item_ids) == [made.ids[row] for row in made.best(HISTORY, NUM_CANDIDATES, hidden)]

    def keep_calling(self) -> None:
        """Any error is allowed at any time; a wrong answer never is."""
        history = [f"item-{row}-é" for row in HISTORY]
        while not self._stop.is_set():
            with suppress(Re4Error), self.client() as client:
                while not self._stop.wait(0.005):
                    allowed = [self.hidden, *self.hidden_before]  # as the call begins
                    found = client.retrieve(history, NUM_CANDIDATES)
                    allowed += [self.hidden, *self.hidden_before]
                    if not any(self.is_right(found.version, found.item_ids, each) for each in allowed):
                        self.wrong.append(f"{found.version}: {found.item_ids}, hidden: {allowed}")

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + DEADLINE_S
        while not is_so():
            assert self.server._process.poll() is None, f"the server ended:\n{self.server.log[-4000:]}"
            if time.monotonic() > until:
                raise AssertionError(f"{what}; the log:\n{self.server.log[-4000:]}")
            time.sleep(0.02)

    def answers_right(self) -> bool:
        history = [f"item-{row}-é" for row in HISTORY]
        for _ in range(IN_A_ROW):
            try:
                with self.client() as client:
                    found = client.retrieve(history, NUM_CANDIDATES)
            except Re4Error:
                return False
            if found.version != self.expected or not self.is_right(
                found.version, found.item_ids, self.hidden
            ):
                return False
        return True

    def rejects_the_old_token(self) -> bool:
        for _ in range(IN_A_ROW):
            try:
                with self.client(f"token-{self.num_tokens - 1}") as client:
                    client.info()
                return False
            except ServerError as error:
                if "UNAUTHENTICATED" not in str(error):
                    return False
        return True

    def children(self, word: bytes = b"") -> list[int]:
        found = []
        for child in Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text().split():
            with suppress(OSError):
                if word in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
        return found

    def holds_no_more(self) -> bool:
        """Workers and the process for recall, a few pipes for them, and only the live version mapped."""
        num_workers, num_children = len(self.children(b"processes.worker")), len(self.children())
        if num_workers != NUM_WORKERS or num_children > NUM_WORKERS + 1:
            return False
        if len(open_files(self.server.pid)) > self.num_descriptors + 6:
            return False
        with suppress(OSError):
            for worker in self.children(b"processes.worker"):
                maps = Path(f"/proc/{worker}/maps").read_text()
                if any(name in maps for name in self.versions if name != self.expected):
                    return False
        return True

    @invariant()
    def all_is_right(self) -> None:
        # A worker that starts while the token file is bad cannot know any token, and admits nobody.
        if self.is_token_file_good or not self.are_workers_replaced:
            self.until(self.answers_right, "no right answer")
            self.until(self.holds_no_more, f"too much is held: {self.children()}")
        if self.is_token_file_good and self.num_tokens > 1:
            self.until(self.rejects_the_old_token, "a revoked token is valid")
        assert not self.wrong
        self.hidden_before.clear()

    # The steps.

    @rule(rows=st.lists(st.sampled_from(range(60)), min_size=1, max_size=30, unique=True))
    def good_hidden(self, rows: list[int]) -> None:
        self.events["good HIDDEN"] += 1
        self.hide_good(rows)

    @rule(name=st.sampled_from(sorted(BAD_FILES)))
    def bad_hidden(self, name: str) -> None:
        self.events["bad HIDDEN"] += 1
        write_by_rename(self.bundles / HIDDEN, BAD_FILES[name])

    @rule()
    def good_tokens(self) -> None:
        self.events["good tokens"] += 1
        self.write_good_tokens()

    @rule(name=st.sampled_from([*sorted(BAD_FILES), "pipe", "absent"]))
    def bad_tokens(self, name: str) -> None:
        self.events["bad tokens"] += 1
        self.is_token_file_good = False
        if name in BAD_FILES:
            write_by_rename(self.tokens, BAD_FILES[name])
            return
        self.tokens.unlink(missing_ok=True)
        if name == "pipe":
            os.mkfifo(self.tokens)

    @rule(content=st.sampled_from([*BAD_FILES.values(), b"99999999T999999Z-0123abcd\n", b"../x\n"]))
    def bad_current(self, content: bytes) -> None:
        self.events["bad CURRENT"] += 1
        write_by_rename(self.bundles / CURRENT, content)

    @rule()
    def good_version(self) -> None:
        self.events["good version"] += 1
        self.publish_good()

    @rule(name=st.sampled_from(sorted(CHANGED_FILES)))
    def bad_version(self, name: str) -> None:
        self.events["bad version"] += 1
        seen = self.server.num_lines
        refused = publish(
            self.bundles, SmallVersion(seed=1000 + self.events["bad version"]), CHANGED_FILES[name][0]
        )
        self.server.wait_for(f"version {refused} refused", after=seen)

    @rule(number=st.sampled_from(SIGNALS), which=st.integers(0, NUM_WORKERS - 1))
    def signal_to_a_worker(self, number: int, which: int) -> None:
        self.events["signal to a worker"] += 1
        workers = self.children(b"processes.worker")
        if len(workers) <= which:  # possible only where no worker starts, by a bad token file
            return
        self.are_workers_replaced = True
        worker = workers[which]
        with suppress(ProcessLookupError):
            os.kill(worker, number)
        # The other signals that stop have no effect on a process group without a terminal.
        if number == signal.SIGSTOP and self.is_token_file_good:
            self.until(lambda: not Path(f"/proc/{worker}").exists(), "a stopped worker stays")

    @rule(number=st.sampled_from(SIGNALS))
    def signal_to_the_check(self, number: int) -> None:
        """A stopped check is cancelled by the next version; another signal kills it, and it is repeated."""
        self.events["signal to the check"] += 1
        self.publish_good()
        self.until(lambda: bool(self.children(b"version_check")), "no check begins")
        for check in self.children(b"version_check"):
            with suppress(ProcessLookupError):
                os.kill(check, number)
        if number == signal.SIGSTOP:
            self.publish_good()

    @rule(number=st.sampled_from(SIGNALS))
    def signal_to_the_recall_process(self, number: int) -> None:
        self.events["signal to the recall process"] += 1
        for process in self.children(b"recall_process"):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    @rule(num_calls=st.integers(1, 300))
    def supervisor_stopped(self, num_calls: int) -> None:
        self.events["supervisor stopped"] += 1
        if not self.is_token_file_good:
            return
        self.server.signal(signal.SIGSTOP)
        try:
            with self.client() as client:
                for _ in range(num_calls):
                    client.retrieve([f"item-{row}-é" for row in HISTORY], NUM_CANDIDATES)
        finally:
            self.server.signal(signal.SIGCONT)

    @rule(
        who=st.sampled_from(["supervisor", "worker", "version_check"]),
        call=st.sampled_from(["open", "stat", "read", "fork"]),
        number=st.sampled_from(TRANSIENT),
        change=st.sampled_from(["hidden", "tokens", "version", "worker"]),
    )
    def transient_error(self, who: str, call: str, number: int, change: str) -> None:
        """While it is in force a good file appears, or a worker is replaced."""
        self.events["transient error"] += 1
        self.faults.on(who, call, number)
        if change == "hidden":
            self.hide_good([1 + number % 7, 30])
        elif change == "tokens":
            self.write_good_tokens()
        elif change == "version":
            self.publish_good()
        else:
            self.signal_to_a_worker(signal.SIGKILL, 0)
        # Whether it is met depends on the process and the change.
        until = time.monotonic() + FAULT_S
        while not self.faults.was_hit and time.monotonic() < until:
            time.sleep(0.02)
        self.events["transient errors that were met"] += self.faults.was_hit
        self.faults.off()


def test_the_server_is_right_after_files_signals_stops_and_errors_in_any_order(
    is_long: bool, findings: Findings
) -> None:
    Machine.events.clear()
    began_s = time.monotonic()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=30 if is_long else 3,  # the first one repeats the simplest step
            stateful_step_count=60 if is_long else 8,
            deadline=None,
            derandomize=not is_long,  # --hypothesis-seed repeats the order of a long run
            # Processes are not repeatable, so a failure cannot be made smaller.
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    proof = "files, signals, stops and errors in any order"
    for event, count in sorted(Machine.events.items()):
        findings.add(proof, event, count)
    findings.add(proof, "minutes", round((time.monotonic() - began_s) / 60, 1))
