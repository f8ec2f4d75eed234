"""Attacks by HTTP/2 itself, most without a token: good callers are answered, and memory stays bounded.

The attacks know a port and nothing of the server, so they fit every transport.
"""

import gzip
import math
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from callers_apart import CallersApart
from findings import Findings
from footprint import footprint
from google.protobuf import json_format
from http2_connection import (
    CONTINUATION,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2Connection,
    frame,
    header_block,
)
from right_answers import RightAnswers, questions
from running_server import DEADLINE_S, RunningServer, open_files
from small_bundles import SmallVersion
from steady_callers import latency_ms, said

from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.auth.tokens import token_hash
from re4.serving.client.connection import Connection

pytestmark = pytest.mark.transports("native", "grpcio")

VERSION = SmallVersion(num_items=2000)
TOKEN = "a-token-of-the-attacked"
BEARER = {"authorization": f"Bearer {TOKEN}"}
NO_WINDOW = struct.pack(">HI", 4, 0)
"""SETTINGS_INITIAL_WINDOW_SIZE 0: the server may send no data."""
GOOD_RATE_PER_S = 40
MAX_GROWTH_BYTES = 48 << 20
"""Of a worker's memory by any attack: most of it is replies that are not read, which gRPC copies."""
MAX_JSON_GROWTH_BYTES = 96 << 20
"""By JSON: the text of a reply is 1.6 times as long as the message, and its making takes some 50 MiB."""
MAX_FLOODS = {"native": 20, "grpcio": 2}
"""gRPC's core holds 256 calls of a method for all connections, and 100 of a connection. So on grpcio a third
one that floods makes it end calls of others with CANCELLED."""
MAX_REPLY_BYTES = 24 << 20
MAX_REPLY_BYTES_PER_CALLER = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What an attack may use."""

    port: int
    http_port: int
    """Of JSON over HTTP/1.1."""
    scale: int
    """1 in the short form."""
    max_floods: int
    """Connections that may flood the server with calls at the same time: see `MAX_FLOODS`."""
    connections: ExitStack
    """Keeps connections open until the good callers have been answered meanwhile."""

    def connect(self, settings: bytes = b"") -> Http2Connection:
        return self.connections.enter_context(Http2Connection(self.port, settings))

    def floods(self) -> Iterator[Http2Connection]:
        """Connections for floods, one after the other; all of them stay open."""
        several = [self.connect() for _ in range(min(self.scale, self.max_floods))]
        for number in range(self.scale):
            yield several[number % len(several)]

    def plain_socket(self) -> socket.socket:
        return self.connections.enter_context(socket.create_connection(("127.0.0.1", self.port), DEADLINE_S))

    def http(self, data: bytes, *, token: str = TOKEN) -> socket.socket:
        """A connection of HTTP/1.1 that has sent a call with a token, and bytes after its first headers."""
        one = self.connections.enter_context(
            socket.create_connection(("127.0.0.1", self.http_port), DEADLINE_S)
        )
        head = f"POST /v1/batch-retrieve HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
        one.sendall(head.encode() + b"Content-Type: application/json\r\n" + data)
        return one


def rapid_reset(attack: Attack) -> None:
    for connection in attack.floods():
        with suppress(ConnectionError):
            for _number in range(1000):
                connection.reset(connection.begin("Retrieve"))
            connection.wait_until_read()


def streams_without_data(attack: Attack) -> None:
    for connection in attack.floods():
        with suppress(ConnectionError):
            for _number in range(1000):
                connection.begin("BatchRetrieve", BEARER)
            connection.wait_until_read()


def calls_without_a_message(attack: Attack) -> None:
    connection = attack.connect()
    for _ in range(50 * attack.scale):
        connection.begin("Info")


def continuation_flood(attack: Attack) -> None:
    for length in (0, 1, 1000):
        connection = attack.connect()
        stream = connection.next_stream()
        with suppress(ConnectionError):  # it may be closed at any time
            connection.write(frame(HEADERS, 0, stream, header_block("Retrieve")[:20]))
            for _ in range(2000 * attack.scale):
                connection.write(frame(CONTINUATION, 0, stream, b"\x00" * length))


def settings_and_ping_flood(attack: Attack) -> None:
    """The acknowledgements are not read."""
    for payload in (frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 100)), frame(PING, 0, 0, b"12345678")):
        connection = attack.connect()
        connection._socket.settimeout(1.0)  # the server stops reading before its own buffer is full
        with suppress(ConnectionError, TimeoutError):
            for _ in range(20 * attack.scale):
                connection.write(payload * 1000)


def control_frames_out_of_order(attack: Attack) -> None:
    for payload in (
        frame(RST_STREAM, 0, 1, struct.pack(">I", 8)),
        frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFFFFFF)) * 3,
        frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0)),
        frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0xFFFFFFFF)),
        frame(SETTINGS, 0, 0, b"odd"),
        frame(CONTINUATION, END_HEADERS, 1, b""),
        b"\xff\xff\xff" + bytes(6),
    ):
        connection = attack.connect()
        with suppress(ConnectionError):
            connection.write(payload)


def large_header_table(attack: Attack) -> None:
    """One large field in the table of the connection, and many references to it: each is one byte."""
    connection = attack.connect()
    stream = connection.next_stream()
    value = b"v" * 3900
    entry = b"\x40\x01x\x7f" + bytes(((len(value) - 127) & 0x7F | 0x80, (len(value) - 127) >> 7)) + value
    block = header_block("Retrieve") + entry + b"\xbe" * 12_000
    with suppress(ConnectionError):
        for _ in range(20 * attack.scale):
            connection.write(frame(HEADERS, END_HEADERS, stream, block))
            stream = connection.next_stream()
            block = header_block("Retrieve") + b"\xbe" * 12_000


def slow_preface(attack: Attack) -> None:
    for number in range(100 * attack.scale):
        attack.plain_socket().sendall(PREFACE[: number % len(PREFACE)])


def idle_connections(attack: Attack) -> None:
    for _ in range(100 * attack.scale):
        attack.connect()


def full_batch() -> bytes:
    """Long lists for as many users as a batch may have, with their interests: a reply of some 5 MB."""
    one = pb.RetrieveRequest(
        history=pb.ItemIds(strings=VERSION.ids[:2]), num_candidates=1000, return_interests=True
    )
    return pb.BatchRetrieveRequest(users=[one] * 256).SerializeToString()


FULL_JSON = json_format.MessageToJson(pb.BatchRetrieveRequest.FromString(full_batch())).encode()


def unread_replies(attack: Attack) -> None:
    """The flow control is kept: the server may send nothing. Each reply is made before the next call."""
    for _ in range(2):
        connection = attack.connect(NO_WINDOW)
        for _number in range(2 * attack.scale):
            connection.send(connection.begin("BatchRetrieve", BEARER), full_batch())
            connection.wait_for_headers(1)


def full_batches_at_once(attack: Attack) -> None:
    """108 small requests for replies of 5 MB, all at once; the callers grant no window beyond the first.

    A connection has as many as its window takes: the flow control is kept in both directions.
    """
    for _ in range(attack.scale):
        connections = [attack.connect() for _ in range(18)]
        for connection in connections:
            for _number in range(6):
                connection.send(connection.begin("BatchRetrieve", BEARER), full_batch())
        try:
            for connection in connections:
                connection.wait_for_headers(6)
        except ConnectionError as error:  # the end of a connection would free its replies
            raise AssertionError("the server closed a connection that kept all rules") from error


def compressed_bombs(attack: Attack) -> None:
    bomb = gzip.compress(bytes(32 << 20))
    connection = attack.connect()
    for _ in range(5 * attack.scale):
        stream = connection.begin("Retrieve", BEARER | {"grpc-encoding": "gzip"})
        connection.send(stream, bomb, is_compressed=True)
        connection.wait_until_read()


def wrong_tokens(attack: Attack) -> None:
    for connection in attack.floods():
        for number in range(300):
            connection.begin("Retrieve", {"authorization": f"Bearer wrong-{number}"})
            if number % 50 == 49:
                connection.wait_until_read()


def http_idle_connections(attack: Attack) -> None:
    """As many as a worker holds, and more."""
    for _ in range(600 if attack.scale > 1 else 100):
        attack.http(b"X-Header: without an end")


def http_endless_headers(attack: Attack) -> None:
    for _ in range(10 * attack.scale):
        with suppress(ConnectionError):
            attack.http(b"X-Header: " + b"x" * (1 << 20))


def http_large_bodies(attack: Attack) -> None:
    """In chunks, so that no header states their length."""
    chunk = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
    for _ in range(attack.scale):
        with suppress(ConnectionError):
            connection = attack.http(b"Transfer-Encoding: chunked\r\n\r\n")
            for _number in range(64):
                connection.sendall(chunk)


def http_deep_bodies(attack: Attack) -> None:
    for opening in (b'{"users":[', b'{"a":{', b"["):
        body = opening * 100_000
        for _ in range(attack.scale):
            connection = attack.http(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert connection.recv(12) == b"HTTP/1.1 400"


def http_unread_replies(attack: Attack) -> None:
    """Each reply is made before the next call."""
    for _ in range(2 * attack.scale):
        connection = attack.http(b"Content-Length: %d\r\n\r\n" % len(FULL_JSON) + FULL_JSON)
        assert connection.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 429")


def http_wrong_tokens(attack: Attack) -> None:
    """With the bodies of calls, which nobody reads."""
    for number in range(20 * attack.scale):
        with suppress(ConnectionError):
            attack.http(b"Content-Length: 1000000\r\n\r\n" + bytes(1_000_000), token=f"wrong-{number}")


def http_port_of(server: RunningServer) -> int:
    return int(server.wait_for(r"JSON over HTTP on \S+:(\d+)").group(1))


def allocate_json(server: RunningServer) -> None:
    """Have a full batch answered as JSON, and read the whole reply."""
    with ExitStack() as connections:
        attack = Attack(
            port=0, http_port=http_port_of(server), scale=1, max_floods=1, connections=connections
        )
        reply = attack.http(b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(FULL_JSON) + FULL_JSON)
        assert reply.recv(12) == b"HTTP/1.1 200"
        while reply.recv(1 << 20):
            pass


HTTP_ATTACKS: tuple[Callable[[Attack], None], ...] = (
    *(http_idle_connections, http_endless_headers, http_large_bodies, http_deep_bodies),
    *(http_unread_replies, http_wrong_tokens),
)

ATTACKS: tuple[Callable[[Attack], None], ...] = (
    *(rapid_reset, streams_without_data, calls_without_a_message, continuation_flood),
    *(settings_and_ping_flood, control_frames_out_of_order, large_header_table, slow_preface),
    *(idle_connections, unread_replies, compressed_bombs, wrong_tokens),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server under attack, and its good callers."""

    server: RunningServer
    callers: CallersApart
    began_s: dict[str, float]
    """When each attack began; it lasted until the next one."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, transport: str, findings: Findings) -> Iterator[Target]:
    """A server of one worker that needs a token. At the end every good call must have been answered."""
    folder: Path = tmp_path_factory.mktemp("attacked")
    tokens = folder / "tokens.toml"
    tokens.write_text(f'[good]\nsha256 = "{token_hash(TOKEN).hex()}"\n')
    name = VERSION.publish(folder / "bundles")
    options = ("--num-processes", "1", "--max-queue-ms", "10000", "--tokens", str(tokens))
    bounds = ("--max-reply-bytes", str(MAX_REPLY_BYTES))
    http = ("--http-address", "127.0.0.1:0")
    per_caller = ("--max-reply-bytes-per-caller", str(MAX_REPLY_BYTES_PER_CALLER))
    with RunningServer(folder / "bundles", *options, *bounds, *per_caller, *http) as server:
        good = questions(VERSION.ids)
        with Connection().channel(server.address) as channel:  # allocates what a full batch needs
            batch_retrieve = channel.unary_unary("/re4.v1.Retrieval/BatchRetrieve")
            batch_retrieve(full_batch(), timeout=DEADLINE_S, metadata=Connection(token=TOKEN).metadata)
        if transport == "native":
            allocate_json(server)
        with CallersApart(
            server.address,
            good,
            rate_per_s=GOOD_RATE_PER_S,
            num_callers=4,
            connection=Connection(token=TOKEN),
        ) as callers:
            found = Target(server=server, callers=callers, began_s={})
            yield found
        assert "Traceback" not in server.log
    answers = RightAnswers({name: VERSION})
    ends_s = [*found.began_s.values(), math.inf][1:]
    for (attack, began_s), end_s in zip(found.began_s.items(), ends_s, strict=True):
        calls = [call for call in callers.calls if began_s <= call.began < end_s]
        failed = [call for call in calls if not call.is_answered]
        wrong, proof = answers.wrong(calls), f"network attack on {transport}, {attack}"
        findings.add(proof, "good calls meanwhile", len(calls))
        findings.add(proof, "of these failed or answered wrong", len(failed) + len(wrong), allowed="0")
        findings.add(proof, "good callers' p99, ms", latency_ms(calls, 99))
        assert calls
        assert not failed, f"{attack}: {said(failed)}"
        assert not wrong, attack


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_good_callers_are_answered_and_memory_is_bounded(
    attack: Callable[[Attack], None], target: Target, transport: str, is_long: bool, findings: Findings
) -> None:
    under_attack(attack, target, transport, is_long, findings)


@pytest.mark.transports("native")
@pytest.mark.parametrize("attack", HTTP_ATTACKS, ids=lambda attack: attack.__name__)
def test_attacks_on_json_over_http(
    attack: Callable[[Attack], None], target: Target, transport: str, is_long: bool, findings: Findings
) -> None:
    """The good callers use gRPC."""
    under_attack(attack, target, transport, is_long, findings)


@pytest.mark.transports("grpcio")
def test_replies_of_108_full_batches_take_bounded_memory(
    target: Target, transport: str, is_long: bool, findings: Findings
) -> None:
    """Without a bound they took 350 MiB in 33 s."""
    under_attack(full_batches_at_once, target, transport, is_long, findings)


def under_attack(
    attack: Callable[[Attack], None], target: Target, transport: str, is_long: bool, findings: Findings
) -> None:
    server = target.server
    (worker,) = server.workers()
    port = int(server.address.rpartition(":")[2])
    num_files, before = len(open_files(worker)), footprint(server.pid)
    target.began_s[attack.__name__] = time.monotonic()
    with ExitStack() as connections:
        with suppress(ConnectionError):  # a server may close the connection of an attacker
            scale, max_floods = 20 if is_long else 1, MAX_FLOODS[transport]
            attack(
                Attack(
                    port=port,
                    http_port=http_port_of(server),
                    scale=scale,
                    max_floods=max_floods,
                    connections=connections,
                )
            )
        target.callers.wait_for_answers(100 if is_long else 4)
        growth = footprint(server.pid).rss_bytes - before.rss_bytes
    proof = f"network attack on {transport}, {attack.__name__}"
    most = MAX_JSON_GROWTH_BYTES if attack in HTTP_ATTACKS else MAX_GROWTH_BYTES
    findings.add(proof, "RSS during the attack less before, MiB", growth / 2**20, allowed=f"{most >> 20}")
    assert server.workers() == {worker}
    assert growth < most
    while len(open_files(worker)) > num_files + 8:  # the closed connections are noticed; the rest is a leak
        with Http2Connection(port) as one:
            one.wait_until_read()
