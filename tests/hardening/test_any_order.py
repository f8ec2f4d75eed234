"""Files, messages, signals, clock jumps, stopped processes and errors in random order, while a client calls.

After each step the server must answer right, must have taken the newest good files by itself, and may hold no
more processes, descriptors, temporary folders or mapped versions than before.
"""

import errno
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import grpc
import hypothesis.strategies as st
from damaged_versions import CHANGED_FILES, publish
from faults import MESSAGES
from findings import Findings
from hostile_requests import damaged_bytes
from hypothesis import HealthCheck, Phase, assume, seed, settings
from hypothesis.errors import UnsatisfiedAssumption
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from judged_server import NUM_WORKERS, JudgedServer, write_by_rename
from right_answers import questions
from running_server import DEADLINE_S
from small_bundles import SmallVersion

from re4.bundle.layout import CANARY, CURRENT, ENCODER, HIDDEN
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.client.connection import Connection

FAULT_S = 1.5
"""How long a fault stays where no call meets it."""
SIGNALS = sorted({*range(1, 65)} - {32, 33})  # these two are the C library's own
NOT_FATAL = {
    signal.SIGHUP,  # the followed files are read again
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them
}
TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EAGAIN)
METHODS = ("Retrieve", "BatchRetrieve", "Encode", "Info")

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
ABSENT = "99999999T999999Z-0123abcd"
BAD_CANARY = {
    **BAD_FILES,
    "absent version": b'{"schema_version": 1, "version": "%s", "share": 1}' % ABSENT.encode(),
    "no share": b'{"schema_version": 1, "version": "%s", "share": NaN}' % ABSENT.encode(),
    "another schema": b'{"schema_version": 2, "version": "%s", "share": 1}' % ABSENT.encode(),
}
BAD_CURRENT = {**BAD_FILES, "absent version": f"{ABSENT}\n".encode(), "outside": b"../x\n"}


class Machine(RuleBasedStateMachine):
    """The steps; `JudgedServer` checks the server after each."""

    events: ClassVar[Counter[str]] = Counter()
    transport: ClassVar[str]
    failure: ClassVar[str]
    """The first failure. Hypothesis runs it again, and reports only that the second run was another one."""

    @initialize(order=st.integers(0, 2**64 - 1))
    def start(self, order: int) -> None:
        assume(order)  # Hypothesis begins with the simplest example, which would repeat the first step
        self.judged = JudgedServer(self.transport)

    def teardown(self) -> None:
        error = sys.exc_info()[1]
        if (
            isinstance(error, Exception)
            and not isinstance(error, UnsatisfiedAssumption)
            and not Machine.failure
        ):
            Machine.failure = "".join(traceback.format_exception(error))
        if hasattr(self, "judged"):
            try:
                self.judged.close()
            finally:
                self.events["answers that were checked under load"] += self.judged.num_answers

    @invariant()
    def all_is_right(self) -> None:
        self.judged.check()

    # Files.

    @rule(rows=st.lists(st.sampled_from(range(60)), min_size=1, max_size=30, unique=True))
    def good_hidden(self, rows: list[int]) -> None:
        self.events["good HIDDEN"] += 1
        self.judged.hide_good(rows)

    @rule(name=st.sampled_from(sorted(BAD_FILES)))
    def bad_hidden(self, name: str) -> None:
        self.events["bad HIDDEN"] += 1
        write_by_rename(self.judged.bundles / HIDDEN, BAD_FILES[name])

    @rule()
    def good_tokens(self) -> None:
        self.events["good tokens"] += 1
        self.judged.write_good_tokens()

    @rule(name=st.sampled_from([*sorted(BAD_FILES), "pipe", "absent"]))
    def bad_tokens(self, name: str) -> None:
        self.events["bad tokens"] += 1
        self.judged.is_token_file_good = False
        if name in BAD_FILES:
            write_by_rename(self.judged.tokens, BAD_FILES[name])
            return
        self.judged.tokens.unlink(missing_ok=True)
        if name == "pipe":
            os.mkfifo(self.judged.tokens)

    @rule(name=st.sampled_from(sorted(BAD_CURRENT)))
    def bad_current(self, name: str) -> None:
        self.events["bad CURRENT"] += 1
        write_by_rename(self.judged.bundles / CURRENT, BAD_CURRENT[name])

    @rule()
    def good_version(self) -> None:
        self.events["good version"] += 1
        self.judged.publish_good()

    @rule(name=st.sampled_from(sorted(CHANGED_FILES)))
    def bad_version(self, name: str) -> None:
        self.events["bad version"] += 1
        seen = self.judged.server.num_lines
        version = SmallVersion(seed=1000 + self.events["bad version"])
        refused = publish(self.judged.bundles, version, CHANGED_FILES[name][0])
        self.judged.server.wait_for(f"version {refused} refused", after=seen)

    @rule(share=st.sampled_from([0.5, 1.0]), is_shadow=st.booleans())
    def good_canary(self, share: float, is_shadow: bool) -> None:
        self.events["good CANARY"] += 1
        self.judged.begin_canary(share, is_shadow)

    @rule(name=st.sampled_from([*sorted(BAD_CANARY), "damaged version", "pipe", "absent"]))
    def bad_canary(self, name: str) -> None:
        """The live version answers all calls from then on."""
        self.events["bad CANARY"] += 1
        canary = self.judged.bundles / CANARY
        if name == "damaged version":
            self.judged.begin_canary(1.0, False)
            (self.judged.bundles / self.judged.canary / ENCODER).write_bytes(b"")
        elif name in BAD_CANARY:
            write_by_rename(canary, BAD_CANARY[name])
        else:
            canary.unlink(missing_ok=True)
            if name == "pipe":
                os.mkfifo(canary)
        self.judged.canary = ""

    # The clock.

    @rule(day=st.sampled_from([-400, -30, -1, 0, 1, 30, 400]), is_next=st.booleans())
    def clock_jump(self, day: int, is_next: bool) -> None:
        """The wall clock of all processes jumps by days, forward or back, before a version or a worker."""
        self.events["clock jump"] += 1
        self.judged.clock.jump_to(day)
        time.sleep(1.0)  # until every process has noticed
        if is_next:
            self.judged.publish_good()
        else:
            with suppress(ProcessLookupError):
                os.kill(self.judged.workers()[0], signal.SIGKILL)

    # Signals.

    @rule(number=st.sampled_from(SIGNALS), which=st.integers(0, NUM_WORKERS - 1))
    def signal_to_a_worker(self, number: int, which: int) -> None:
        self.events["signal to a worker"] += 1
        worker = self.judged.workers()[which]
        with suppress(ProcessLookupError):
            os.kill(worker, number)
        # The other signals that stop have no effect on a process group without a terminal.
        if number == signal.SIGSTOP:
            self.judged.until(lambda: not Path(f"/proc/{worker}").exists(), "a stopped worker stays")

    @rule(number=st.sampled_from(SIGNALS))
    def signal_to_the_check(self, number: int) -> None:
        """A stopped check is cancelled by the next version; another signal kills it, and it is repeated."""
        self.events["signal to the check"] += 1
        self.judged.publish_good()
        self.judged.until(lambda: bool(self.judged.children(b"version_check")), "no check begins")
        for check in self.judged.children(b"version_check"):
            with suppress(ProcessLookupError):
                os.kill(check, number)
        if number == signal.SIGSTOP:
            self.judged.publish_good()

    @rule(number=st.sampled_from(SIGNALS))
    def signal_to_the_recall_process(self, number: int) -> None:
        self.events["signal to the recall process"] += 1
        for process in self.judged.children(b"recall_process"):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    @rule(number=st.sampled_from(SIGNALS))
    def signal_to_the_supervisor(self, number: int) -> None:
        """SIGTERM and SIGINT stop the server. The end of the supervisor by another one ends all processes."""
        self.events["signal to the supervisor"] += 1
        children = self.judged.children()
        self.judged.server.signal(number)
        if number in NOT_FATAL:
            self.judged.server.signal(signal.SIGCONT)
            return
        self.judged.server._process.wait(DEADLINE_S)
        for child in children:  # one that an earlier step has stopped cannot see the end of its pipe
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
        code = self.judged.supervisor_ended()
        assert code == (0 if number in (signal.SIGTERM, signal.SIGINT) else -number)

    @rule(num_calls=st.integers(1, 300))
    def supervisor_stopped(self, num_calls: int) -> None:
        self.events["supervisor stopped"] += 1
        self.judged.server.signal(signal.SIGSTOP)
        try:
            if self.judged.is_token_file_good:
                with self.judged.client() as client:
                    for _ in range(num_calls):
                        self.judged.retrieve(client)
        finally:
            self.judged.server.signal(signal.SIGCONT)

    # Errors of system calls, and messages between the processes.

    @rule(
        who=st.sampled_from(["supervisor", "worker", "version_check", "recall_process"]),
        call=st.sampled_from(["open", "stat", "read", "list", "fork"]),
        number=st.sampled_from(TRANSIENT),
        change=st.sampled_from(["hidden", "tokens", "version", "canary", "worker"]),
    )
    def transient_error(self, who: str, call: str, number: int, change: str) -> None:
        """While it is in force a good file appears, or a worker is replaced."""
        self.events["transient error"] += 1
        self._with_fault(who, call, number, change)

    @rule(
        who=st.sampled_from(["supervisor", "worker", "recall_process"]),
        message=st.sampled_from(sorted(MESSAGES)),
        change=st.sampled_from(["hidden", "version", "canary", "worker"]),
    )
    def damaged_message(self, who: str, message: str, change: str) -> None:
        """For a while all messages of a kind of process are damaged."""
        self.events["damaged message"] += 1
        self._with_fault(who, "message", sorted(MESSAGES).index(message), change)

    def _with_fault(self, who: str, call: str, number: int, change: str) -> None:
        self.judged.faults.on(who, call, number)
        if change == "hidden":
            self.judged.hide_good([1 + number % 7, 30])
        elif change == "tokens":
            self.judged.write_good_tokens()
        elif change == "version":
            self.judged.publish_good()
        elif change == "canary":
            self.judged.begin_canary(1.0, number % 2 > 0)
        else:
            with suppress(ProcessLookupError):
                os.kill(self.judged.workers()[0], signal.SIGKILL)
        # Whether it is met depends on the process and the change.
        until = time.monotonic() + FAULT_S
        while not self.judged.faults.was_hit and time.monotonic() < until:
            time.sleep(0.02)
        self.events["faults that were met"] += self.judged.faults.was_hit
        self.judged.faults.off()

    # Requests.

    @rule(number=st.integers(0, 2**32), num_requests=st.integers(1, 200))
    def hostile_requests(self, number: int, num_requests: int) -> None:
        """Damaged, deeply nested and oversized messages; each gets a status."""
        self.events["hostile requests"] += num_requests
        rng = random.Random(number)
        good = questions(next(iter(self.judged.versions.values())).ids)
        valid = [each.SerializeToString() for each in good]
        valid.append(pb.BatchRetrieveRequest(users=good).SerializeToString())
        options = [("grpc.max_send_message_length", -1)]
        metadata = Connection(token=self.judged.token).metadata
        with grpc.insecure_channel(self.judged.server.address, options=options) as channel:
            for _ in range(num_requests):
                data = bytes(5 << 20) if rng.random() < 0.02 else damaged_bytes(valid, rng)
                method = channel.unary_unary(f"/re4.v1.Retrieval/{rng.choice(METHODS)}")
                code = method.future(data, timeout=DEADLINE_S, metadata=metadata).code()
                assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), data[:300].hex()


def test_the_server_is_right_after_any_steps_in_any_order(
    machine_seed: int, is_long: bool, findings: Findings
) -> None:
    Machine.events.clear()
    Machine.failure = ""
    Machine.transport = "native" if machine_seed % 2 else "grpcio"
    began_s = time.monotonic()
    try:
        run_state_machine_as_test(
            seed(machine_seed)(Machine),
            settings=settings(
                max_examples=4 if is_long else 1,
                stateful_step_count=50 if is_long else 6,
                deadline=None,
                # Processes are not repeatable, so a failure cannot be made smaller.
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    except Exception as error:
        raise AssertionError(f"{error}; the first failure:\n{Machine.failure}") from None
    finally:
        proof = f"any steps in any order on {Machine.transport}, seed {machine_seed}"
        for event, count in sorted(Machine.events.items()):
            findings.add(proof, event, count)
        findings.add(proof, "minutes", round((time.monotonic() - began_s) / 60, 1))
