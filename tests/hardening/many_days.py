"""Days in the life of two servers, one after the other, under load, by a clock that is moved.

usage: many_days.py FOLDER DAYS SWAPS       with the environment of a `MovedClock` in FOLDER/clock

Each day the certificate and the token are renewed; a rebuild is killed, another one runs out of disk, and
others publish; the first server swaps versions SWAPS times; one of its workers and the check of a version are
killed; the supervisor of the second server is killed and started again; and the folder for temporary files is
full while a worker is killed and the tokens change. The other worker of the first server and its supervisor
live through all the days. Callers hold connections to both servers.

Prints one line of JSON: what was held at the end of each day, and what became of the calls.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import psutil
import pytest
from certificates import DAY, Authority, Pair
from file_systems import full, small_file_system
from footprint import Footprint, footprint
from moved_clock import MovedClock
from rebuild_samples import Shop
from right_answers import RightAnswers, questions
from running_server import DEADLINE_S, PAUSE_S, RunningServer
from small_bundles import SmallVersion
from steady_callers import Call, SteadyCallers, latency_ms, said

from re4.bundle.layout import CURRENT
from re4.bundle.publishing.current import read_current
from re4.bundle.publishing.retention import prune
from re4.bundle.publishing.versions import version_names
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.auth.tokens import token_hash
from re4.serving.client.connection import Connection

NUM_ITEMS = 1000
BUNDLES_BYTES = 32 << 20
TEMPORARY_BYTES = 8 << 20
NUM_CALLERS = 4
RATE_PER_S = 20
HEARD_WITHIN_S = 1.0
"""On a busy machine, a client may hear so late that its connection is closed."""
HOST = "re4.test"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
    # A call waits for a connection; one that was sent and lost is not sent again, and so is counted.
    "methodConfig": [{"name": [{"service": "re4.v1.Retrieval"}], "waitForReady": True}],
}
OPTIONS = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.min_reconnect_backoff_ms", 5000),  # also the time for a handshake
    ("grpc.ssl_target_name_override", HOST),
    ("grpc.default_authority", HOST),
)


@dataclass(frozen=True, kw_only=True)
class Day:
    """What was held at the end of a day."""

    number: int
    """1 for the first."""
    date: str
    """By the moved clock."""
    seconds: float
    """By the real clock."""
    server: Footprint
    """The first server: supervisor, workers, and the process for recall."""
    supervisor: Footprint
    worker: Footprint
    """The worker that is never killed."""
    second_server: Footprint
    """Its supervisor was killed on this day."""
    num_temporary_files: int
    temporary_bytes: int
    num_other_files: int
    """In the bundle directories, beside versions and `CURRENT`."""
    load: float
    """Processes that wanted a core, by the system's mean of a minute."""
    latency_p99_ms: float
    num_calls: int
    num_failed_in_flight: int
    """Calls that were in flight at a kill."""
    num_repeated: int
    """Calls that were rejected under overload, for the machine was busy, and answered when sent again."""


class Servers:
    """The two servers with their files, and what happened so far."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.clock = MovedClock(folder / "clock")
        self.events: Counter[str] = Counter()
        self.kills: list[float] = []
        self.temporary = folder / "temporary"
        self.can_be_full = all(
            stack.enter_context(small_file_system(path, num_bytes))
            for path, num_bytes in ((folder / "bundles", BUNDLES_BYTES), (self.temporary, TEMPORARY_BYTES))
        )
        os.environ["TMPDIR"] = str(self.temporary)
        self.authority = Authority(folder)
        self.pair = self.issue()
        self.tokens = folder / "tokens.toml"
        self.secrets: list[str] = []
        self.write_tokens("day-0")
        shop = Shop(folder, num_items=NUM_ITEMS)
        self.version, self.bundles = shop.version, shop.bundles
        self.versions: dict[str, SmallVersion] = {shop.first: shop.version}
        self.second_bundles = folder / "second"
        self.publish(self.version, self.second_bundles)
        self.first = stack.enter_context(self.start(self.bundles, "--num-processes", "2"))
        self.second = self.start(self.second_bundles)
        stack.callback(lambda: self.second.stop())
        self.second.__enter__()
        # The processes of the workers are made in the order of their numbers.
        self.kept = min(self.first.workers())
        paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), *sys.path]
        self.accidents = stack.enter_context(
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("rebuild_and_die.py")), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
        )
        stack.callback(self.accidents.stdin.close)

    def start(self, bundles: Path, *options: str) -> RunningServer:
        return RunningServer(
            bundles,
            *("--poll-interval-s", "0.1", "--max-queue-ms", "10000", "--metrics-address", "127.0.0.1:0"),
            *("--tls-certificate", str(self.pair.certificate), "--tls-key", str(self.pair.key)),
            *("--tokens", str(self.tokens), "--recall-sample", "0.1", "--access-log", "off"),
            *options,
        )

    # Renewals.

    def issue(self) -> Pair:
        return self.authority.issue(host=HOST, begins=-2 * DAY, ends=1.5 * DAY)

    def renew_certificate(self) -> None:
        """The one of the day before ends within half a day."""
        self.events["certificates renewed"] += 1
        self.pair.replace(self.issue())

    def write_tokens(self, *names: str, extra: str = "") -> None:
        self.secrets = list(names)
        hashes = ", ".join(f'"{token_hash(name).hex()}"' for name in names)
        new = self.tokens.with_suffix(".new")
        new.write_text(f"[ranking]\nsha256 = [{hashes}]\nusers_per_s = 100000\n{extra}")
        new.replace(self.tokens)

    def renew_tokens(self, *names: str, extra: str = "") -> None:
        """Write the file, and wait until every worker has read it."""
        seen = [(server, server.num_lines) for server in (self.first, self.second)]
        self.write_tokens(*names, extra=extra)
        for server, num_lines in seen:
            self.wait_for_workers(server, "tokens read again", num_lines)

    def require_rejection(self, token: str) -> None:
        """An old token is refused by both servers."""
        for server in (self.first, self.second):
            connection = Connection(ca=self.authority.path.read_bytes(), is_tls=True, token=token)
            with (
                connection.channel(server.address, OPTIONS) as channel,
                pytest.raises(grpc.RpcError, check=lambda error: error.code() is UNAUTHENTICATED),
            ):
                channel.unary_unary("/re4.v1.Retrieval/Info")(b"", metadata=connection.metadata)

    def wait_for_workers(self, server: RunningServer, text: str, after: int) -> None:
        for number in range(1, 3 if server is self.first else 2):
            server.wait_for(rf"worker {number}: {text}", after=after)

    def callers(self) -> SteadyCallers:
        addresses = ",".join(server.address for server in (self.first, self.second))
        return SteadyCallers(
            f"ipv4:{addresses}",
            questions(self.version.ids),
            rate_per_s=RATE_PER_S,
            num_callers=NUM_CALLERS,
            options=OPTIONS,
            max_tries=10,
            connection=Connection(ca=self.authority.path.read_bytes(), is_tls=True, token=self.secrets[-1]),
        )

    # Versions.

    def publish(self, version: SmallVersion, bundles: Path) -> str:
        name = version.publish(bundles)
        self.versions[name] = version
        return name

    def wait_for_current(self) -> None:
        self.wait_for_workers(self.first, f"serving {read_current(self.bundles)}", 0)

    def swap(self, version: SmallVersion) -> None:
        self.events["swaps"] += 1
        self.publish(version, self.bundles)
        self.wait_for_current()

    def swap_many(self, count: int) -> None:
        """The last one is of the vectors that are rebuilt."""
        for _ in range(count - 1):
            self.swap(SmallVersion(seed=self.events["swaps"], num_items=NUM_ITEMS))
        self.swap(self.version)
        self.publish(self.version, self.second_bundles)
        self.second.wait_for(f"serving {read_current(self.second_bundles)}")
        prune(self.second_bundles, num_kept=1)

    def rebuild(self, accident: str) -> None:
        if accident == "disk-full" and not self.can_be_full:
            accident = "file-size-limit"
        self.accidents.stdin.write(f"{accident} 1\n")
        self.accidents.stdin.flush()
        line = self.accidents.stdout.readline()
        assert line, "the rebuilds ended: look above"
        found = json.loads(line)
        self.events[f"rebuilds with accident: {accident}"] += 1
        for name in found["names"]:  # on a busy machine, it begins with one of those that were swapped
            self.versions.setdefault(name, self.version)
        assert read_current(self.bundles).startswith(f"{datetime.now(UTC):%Y%m%d}")
        self.wait_for_current()

    # Kills.

    def kill_check(self) -> None:
        self.events["kills of a check"] += 1
        self.publish(self.version, self.bundles)
        check = self.wait_until(lambda: children(self.first.pid, "version_check"))[0]
        with suppress(ProcessLookupError):
            os.kill(check, signal.SIGKILL)
        self.wait_for_current()

    def kill_worker(self) -> Callable[[], None]:
        """Kill the one that is not kept; the result waits for its successor."""
        self.events["kills of a worker"] += 1
        seen = self.first.num_lines
        (worker,) = self.first.workers() - {self.kept}
        self.kills.append(time.monotonic())
        os.kill(worker, signal.SIGKILL)
        return lambda: self.first.wait_for(r"worker \d: serving", after=seen)

    def kill_supervisor(self) -> None:
        """Of the second server, which is then started on its address, as an init system does."""
        self.events["kills of a supervisor"] += 1
        address = self.second.address
        self.kills.append(time.monotonic())
        os.kill(self.second.pid, signal.SIGKILL)
        assert self.second.wait() == -signal.SIGKILL
        self.second = self.start(self.second_bundles, "--address", address)
        self.second.__enter__()

    def fill_the_temporary_folder(self) -> None:
        """While a worker is killed, and a caller with a rate of its own appears among the tokens."""
        if not self.can_be_full:
            return
        self.events["temporary folders full"] += 1
        seen = self.first.num_lines
        with full(self.temporary):
            wait_for_successor = self.kill_worker()
            name, digest = f"extra-{self.events['temporary folders full']}", token_hash("x").hex()
            self.write_tokens(*self.secrets, extra=f'[{name}]\nsha256 = "{digest}"\nusers_per_s = 5\n')
            self.first.wait_for(r"the rate of extra-\d+ is limited by each worker alone", after=seen)
            wait_for_successor()

    # Judgement.

    def judge(self, calls: list[Call]) -> int:
        """Count the calls that were in flight at a kill. Other failures and wrong answers end the run."""
        failed = [call for call in calls if not call.is_answered]
        unexplained = [
            call
            for call in failed
            if call.code is not grpc.StatusCode.UNAVAILABLE
            or not any(call.began <= kill + HEARD_WITHIN_S and call.ended >= kill for kill in self.kills)
        ]
        assert not unexplained, said(unexplained)
        wrong = RightAnswers(self.versions).wrong(calls)
        replies = [pb.RetrieveReply.FromString(call.reply) for call in wrong]
        known = Counter((reply.version, reply.version in self.versions) for reply in replies)
        assert not wrong, f"{len(wrong)} wrong answers: {known}; the first: {replies[0]}"
        return len(failed)

    def wait_until(self, find: Callable[[], Any]) -> Any:
        until = time.monotonic() + DEADLINE_S
        while not (found := find()):
            assert time.monotonic() < until, self.first.log[-4000:]
            time.sleep(PAUSE_S)
        return found

    def measure(self, number: int, began: float, calls: list[Call]) -> Day:
        num_failed = self.judge(calls)
        self.wait_until(lambda: not children(self.first.pid, "version_check"))
        for server in (self.first, self.second):
            address = server.wait_for(r"metrics on (\S+)").group(1)
            assert b"re4_calls_total" in urlopen(address, timeout=DEADLINE_S).read()
        temporary = [path for path in self.temporary.rglob("*") if path.is_file()]
        known = {CURRENT, *version_names(self.bundles), *version_names(self.second_bundles)}
        others = [
            path
            for folder in (self.bundles, self.second_bundles)
            for path in folder.iterdir()
            if path.name not in known
        ]
        return Day(
            number=number,
            date=f"{datetime.now(UTC):%Y-%m-%d}",
            seconds=round(time.monotonic() - began, 1),
            server=footprint(self.first.pid),
            supervisor=footprint(self.first.pid, is_tree=False),
            worker=footprint(self.kept, is_tree=False),
            second_server=footprint(self.second.pid),
            num_temporary_files=len(temporary),
            temporary_bytes=sum(path.stat().st_size for path in temporary),
            num_other_files=len(others),
            load=round(os.getloadavg()[0], 1),
            latency_p99_ms=round(latency_ms(calls, 99), 1),
            num_calls=len(calls),
            num_failed_in_flight=num_failed,
            num_repeated=sum(call.num_tries > 1 for call in calls),
        )


def children(pid: int, word: str) -> list[int]:
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error):
            if word in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def live_through_a_day(servers: Servers, number: int, num_swaps: int, rng: random.Random) -> Day:
    began = time.monotonic()
    with servers.callers() as of_yesterday:
        of_yesterday.wait_for_answers(1)
        servers.clock.move_to(number)
        servers.renew_certificate()
        servers.renew_tokens(*servers.secrets, f"day-{number}")
        with servers.callers() as callers:
            callers.wait_for_answers(1)
            of_yesterday.__exit__()
            servers.renew_tokens(servers.secrets[-1])
            servers.require_rejection(f"day-{number - 1}")
            steps = [
                lambda: servers.rebuild("killed"),
                lambda: servers.rebuild("disk-full"),
                lambda: servers.swap_many(num_swaps),
                servers.kill_check,
                lambda: servers.kill_worker()(),
                servers.kill_supervisor,
                servers.fill_the_temporary_folder,
            ]
            rng.shuffle(steps)
            for step in steps:
                step()
                callers.wait_for_answers(1)
    return servers.measure(number, began, [*of_yesterday.calls, *callers.calls])


def main(folder: Path, num_days: int, num_swaps: int) -> None:
    rng = random.Random(0)
    days = []
    with ExitStack() as stack:
        servers = Servers(folder, stack)
        for number in range(1, num_days + 1):
            days.append(live_through_a_day(servers, number, num_swaps, rng))
            sys.stderr.write(json.dumps(asdict(days[-1]), default=sorted) + "\n")
            sys.stderr.flush()
        has_traceback = "Traceback" in servers.first.log
    facts = {
        "days": [asdict(day) for day in days],
        "events": servers.events,
        "has_traceback": has_traceback,
        "transport": servers.first.wait_for(r"transport (\w+):").group(1),
    }
    sys.stdout.write(json.dumps(facts, default=sorted) + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the servers are stopped too
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
