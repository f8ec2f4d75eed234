"""Hostile and malformed requests: each is answered with a proper status, and good callers notice nothing."""

import random
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from callers_apart import CallersApart
from findings import Findings
from footprint import footprint
from google.protobuf.message import Message
from hostile_requests import REQUESTS, Known, damaged_bytes, requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from right_answers import RightAnswers, questions
from running_server import DEADLINE_S, RunningServer
from small_bundles import NUM_INTERESTS, SmallVersion
from steady_callers import latency_ms, said

from re4.protos.v1 import retrieval_pb2 as pb

pytestmark = pytest.mark.transports("native", "grpcio")

PROPER = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
PROPER_USER_ERRORS = {code.value[0] for code in PROPER - {grpc.StatusCode.OK}}
WRONG_METHODS = ("Train", "retrieve", "", "Retrieve/", "Info" * 200, "%00", "../Info")
NUM_IN_FLIGHT = 16
GOOD_RATE_PER_S = 50
VERSIONS = {
    "string": SmallVersion(has_attributes=True),
    "int": SmallVersion(seed=5, id_kind="int", has_attributes=True),
}
ATTRIBUTE_WORDS = ("colour", "tags", "is_even", "red", "green", "a", "true")


class Target:
    """A server of one kind of ids under attack, and the tally of what it answered."""

    def __init__(self, server: RunningServer, version: SmallVersion) -> None:
        self.server = server
        self.version = version
        self.statuses: Counter[str] = Counter()
        self.num_improper = 0
        self._channel = grpc.insecure_channel(server.address)
        self._pending: deque[tuple[str, bytes, set[grpc.StatusCode], grpc.Future]] = deque()

    def attack(self, method: str, data: bytes, *, proper: set[grpc.StatusCode] = PROPER) -> None:
        """Send bytes, and judge the answer to what was sent a while ago."""
        call = self._channel.unary_unary(f"/re4.v1.Retrieval/{method}")
        self._pending.append((method, data, proper, call.future(data, timeout=DEADLINE_S)))
        if len(self._pending) >= NUM_IN_FLIGHT:
            self._judge()

    def attack_and_wait(self, method: str, data: bytes) -> None:
        """Send bytes, and judge the answer to them."""
        self.attack(method, data)
        self.judge_all()

    def judge_all(self) -> None:
        while self._pending:
            self._judge()

    def close(self) -> None:
        self._channel.close()

    def _judge(self) -> None:
        method, data, proper, future = self._pending.popleft()
        error = future.exception(DEADLINE_S)
        code = grpc.StatusCode.OK if error is None else error.code()
        self.statuses[code.name] += 1
        self.num_improper += code not in proper
        assert code in proper, f"{method} {data[:300].hex()} ({len(data)} bytes): {code.name} {error}"
        if error is None:
            assert_well_formed(method, data, future.result())


def assert_well_formed(method: str, data: bytes, reply: bytes) -> None:
    """Whatever was asked, an answer is one that its caller can use."""
    if method == "Retrieve":
        request, found = pb.RetrieveRequest.FromString(data), pb.RetrieveReply.FromString(reply)
        items = list(found.items.strings or found.items.ints)
        assert len(items) == len(set(items)) == len(found.scores) == len(found.interest_numbers)
        assert len(items) <= request.num_candidates
        assert np.isfinite(found.scores).all()
        assert all(number < NUM_INTERESTS for number in found.interest_numbers)
        assert not set(items) & set(request.exclude.strings or request.exclude.ints)
    elif method == "BatchRetrieve":
        asked, batch = pb.BatchRetrieveRequest.FromString(data), pb.BatchRetrieveReply.FromString(reply)
        num_items = len(batch.items.strings) + len(batch.items.ints)
        assert len(batch.num_candidates) == len(asked.users)
        assert sum(batch.num_candidates) == num_items == len(batch.scores) == len(batch.interest_numbers)
        assert {error.code for error in batch.errors} <= PROPER_USER_ERRORS, batch.errors
        assert np.isfinite(batch.scores).all()
    elif method == "Encode":
        assert np.isfinite(pb.EncodeReply.FromString(reply).interests.vectors).all()


@pytest.fixture(scope="module", params=list(VERSIONS))
def target(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    findings: Findings,
    is_long: bool,
) -> Iterator[Target]:
    """Under attack while good callers call; at the end nothing has died and nothing is logged as a defect."""
    version: SmallVersion = VERSIONS[request.param]
    proof = f"fuzzer, {request.param} ids"
    bundles: Path = tmp_path_factory.mktemp("fuzzed")
    name = version.publish(bundles)
    options = ("--num-processes", "1", "--max-queue-ms", "10000", "--fallback", "popular")
    with RunningServer(bundles, *options) as server:
        attacked = Target(server, version)
        workers = server.workers()
        with CallersApart(
            server.address, questions(version.ids), rate_per_s=GOOD_RATE_PER_S, num_callers=4
        ) as callers:
            callers.wait_for_answers(200 if is_long else 5)
            before, began_at = footprint(server.pid), time.monotonic()
            yield attacked
            attacked.judge_all()
            callers.wait_for_answers()
            after, seconds = footprint(server.pid), time.monotonic() - began_at
        attacked.close()
        alone = [call for call in callers.calls if call.ended < began_at]
        attacked_calls = [call for call in callers.calls if call.began >= began_at]
        failed = [call for call in callers.calls if not call.is_answered]
        wrong = RightAnswers({name: version}).wrong(callers.calls)
        findings.add(proof, "hostile requests", attacked.statuses.total())
        for code, count in sorted(attacked.statuses.items()):
            findings.add(proof, f"answered {code}", count)
        findings.add(proof, "answered UNKNOWN, INTERNAL or not at all", attacked.num_improper, allowed="0")
        findings.add(proof, "hostile requests per second", attacked.statuses.total() / seconds)
        findings.add(proof, "good calls meanwhile", len(attacked_calls))
        findings.add(
            proof, "good calls that failed or got a wrong answer", len(failed) + len(wrong), allowed="0"
        )
        for percent in (50, 99):
            findings.add(
                proof,
                f"good callers' p{percent} under attack over p{percent} alone",
                latency_ms(attacked_calls, percent) / latency_ms(alone, percent),
            )
        findings.add(proof, "PSS after less before, MiB", (after.pss_bytes - before.pss_bytes) / 2**20)
        findings.add(proof, "workers that died", len(workers - server.workers()), allowed="0")
        assert not failed, said(failed)
        assert not wrong
        assert server.workers() == workers
        assert not tracebacks(server.log)
        assert "ERROR" not in server.log


def tracebacks(log: str) -> list[str]:
    """What a log tells of defects, from the line before each."""
    lines = log.splitlines()
    begins = [number for number, line in enumerate(lines) if "Traceback" in line]
    return ["\n".join(lines[max(0, number - 1) : number + 40]) for number in begins]


@pytest.fixture(scope="module")
def num_requests(is_long: bool) -> int:
    """Of each of the two large attacks on each kind of ids: 100,000 together in the long size."""
    return 25_000 if is_long else 100


def test_fields_with_any_values(target: Target, num_requests: int) -> None:
    ids = target.version.ids
    known = (
        Known(texts=[*ids, *ATTRIBUTE_WORDS], numbers=())
        if isinstance(ids[0], str)
        else Known(texts=ATTRIBUTE_WORDS, numbers=ids)
    )
    any_request = st.one_of(
        *(
            st.tuples(st.just(method), requests(method, known))
            for method in REQUESTS
            for _ in range(1 if method == "Info" else 4)
        )
    )

    @settings(max_examples=num_requests, database=None, suppress_health_check=list(HealthCheck))
    @given(any_request)
    def attack(drawn: tuple[str, Message]) -> None:
        method, request = drawn
        target.attack_and_wait(method, request.SerializeToString())

    attack()


def test_bytes_damaged_on_the_wire(target: Target, num_requests: int) -> None:
    rng = random.Random(0)
    good = questions(target.version.ids)
    good[0].exclude.CopyFrom(good[1].history)
    good[1].filters.add(attribute="tags", values=["a", "b"])
    good[2].merge_policy, good[2].num_reasons = pb.MERGE_POLICY_CATEGORY_DIVERSITY, 2
    good[2].diversity, good[2].diversity_attribute = 0.5, "colour"
    valid = {
        "Retrieve": [question.SerializeToString() for question in good],
        "BatchRetrieve": [pb.BatchRetrieveRequest(users=good).SerializeToString()],
        "Encode": [pb.EncodeRequest(history=question.history).SerializeToString() for question in good],
        "Info": [b"", b"\x08\x01"],
    }
    for _ in range(num_requests):
        method = rng.choices(list(valid), (6, 3, 3, 1))[0]
        target.attack(method, damaged_bytes(valid[method], rng))
    target.judge_all()


def test_callers_who_give_up(target: Target, num_requests: int) -> None:
    """By a deadline that cannot be met, or by hanging up."""
    request = questions(target.version.ids)[0].SerializeToString()
    with grpc.insecure_channel(target.server.address) as channel:
        call = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
        for number in range(num_requests // 10):
            future = call.future(request, timeout=0.0002 * (number % 10))
            if number % 3 == 0:
                future.cancel()
            if number % NUM_IN_FLIGHT == 0:  # the server has seen them: a flood is another proof's business
                target.attack_and_wait("Retrieve", request)


def test_methods_that_are_not_there(target: Target) -> None:
    for method in WRONG_METHODS:
        target.attack(method, b"", proper={grpc.StatusCode.UNIMPLEMENTED})
    target.judge_all()


def test_connections_that_speak_no_http2(target: Target, is_long: bool) -> None:
    """Noise, another protocol, a preface and then noise; each is closed, and disturbs nobody."""
    host, _, port = target.server.address.rpartition(":")
    rng = random.Random(1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for number in range(200 if is_long else 8):
        opening = (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", preface, preface + b"\0\0\0\4\0\0\0\0\0")[
            number % 4
        ]
        with socket.create_connection((host, int(port)), DEADLINE_S) as connection:
            connection.sendall(opening + rng.randbytes(200))


def test_a_message_that_unpacks_to_far_more(target: Target, transport: str) -> None:
    """A few kilobytes that would be far more than the limit: not so much is unpacked."""
    (worker,) = target.server.workers()
    before = peak_bytes(worker)
    with grpc.insecure_channel(
        target.server.address,
        options=[("grpc.max_send_message_length", -1)],
        compression=grpc.Compression.Gzip,
    ) as channel:
        call = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\0" * (64 << 20), timeout=DEADLINE_S)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, refused.value
    assert peak_bytes(worker) - before < 32 << 20


def peak_bytes(pid: int) -> int:
    """Most memory that a process ever held."""
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(kibibytes)
