"""Attacks by HTTP/2 itself, most without a token: good callers are answered, and memory stays bounded.

The attacks know a port and nothing of the server, so they fit every transport.
"""

import gzip
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from callers_apart import CallersApart
from findings import Findings
from footprint import footprint
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

VERSION = SmallVersion(num_items=2000)
TOKEN = "a-token-of-the-attacked"
BEARER = {"authorization": f"Bearer {TOKEN}"}
NO_WINDOW = struct.pack(">HI", 4, 0)
"""SETTINGS_INITIAL_WINDOW_SIZE 0: the server may send no data."""
GOOD_RATE_PER_S = 40
MAX_GROWTH_BYTES = 96 << 20
"""Of a worker's memory by any attack, beside the bounds of replies; most of it is gRPC's own buffers."""
MAX_REPLY_BYTES = 24 << 20
MAX_REPLY_BYTES_PER_CALLER = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What an attack may use."""

    port: int
    scale: int
    """1 in the short form."""
    connections: ExitStack
    """Keeps connections open until the good callers have been answered meanwhile."""

    def connect(self, settings: bytes = b"") -> Http2Connection:
        return self.connections.enter_context(Http2Connection(self.port, settings))

    def plain_socket(self) -> socket.socket:
        return self.connections.enter_context(socket.create_connection(("127.0.0.1", self.port), DEADLINE_S))


def rapid_reset(attack: Attack) -> None:
    for _ in range(attack.scale):
        connection = attack.connect()
        for _number in range(1000):
            connection.reset(connection.begin("Retrieve"))
        connection.wait_until_read()


def streams_without_data(attack: Attack) -> None:
    for _ in range(attack.scale):
        connection = attack.connect()
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


def unread_replies(attack: Attack) -> None:
    """The flow control is kept: the server may send nothing. Full batches of long lists, with interests."""
    one = pb.RetrieveRequest(
        history=pb.ItemIds(strings=VERSION.ids[:2]), num_candidates=1000, return_interests=True
    )
    batch = pb.BatchRetrieveRequest(users=[one] * 256).SerializeToString()
    for _ in range(4):
        connection = attack.connect(NO_WINDOW)
        for _number in range(3 * attack.scale):
            connection.send(connection.begin("BatchRetrieve", BEARER), batch)
        connection.wait_until_read()


def compressed_bombs(attack: Attack) -> None:
    bomb = gzip.compress(bytes(32 << 20))
    connection = attack.connect()
    for _ in range(5 * attack.scale):
        stream = connection.begin("Retrieve", BEARER | {"grpc-encoding": "gzip"})
        connection.send(stream, bomb, is_compressed=True)
        connection.wait_until_read()


def wrong_tokens(attack: Attack) -> None:
    for number in range(300 * attack.scale):
        if number % 100 == 0:
            connection = attack.connect()
        connection.begin("Retrieve", {"authorization": f"Bearer wrong-{number}"})
        if number % 50 == 49:
            connection.wait_until_read()


ATTACKS: tuple[Callable[[Attack], None], ...] = (
    *(rapid_reset, streams_without_data, calls_without_a_message, continuation_flood),
    *(settings_and_ping_flood, control_frames_out_of_order, large_header_table, slow_preface),
    *(idle_connections, unread_replies, compressed_bombs, wrong_tokens),
)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, str]]:
    """A server of one worker that needs a token."""
    folder: Path = tmp_path_factory.mktemp("attacked")
    tokens = folder / "tokens.toml"
    tokens.write_text(f'[good]\nsha256 = "{token_hash(TOKEN).hex()}"\n')
    name = VERSION.publish(folder / "bundles")
    options = ("--num-processes", "1", "--max-queue-ms", "10000", "--tokens", str(tokens))
    bounds = ("--max-reply-bytes", str(MAX_REPLY_BYTES))
    per_caller = ("--max-reply-bytes-per-caller", str(MAX_REPLY_BYTES_PER_CALLER))
    with RunningServer(folder / "bundles", *options, *bounds, *per_caller) as server:
        yield server, name


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_good_callers_are_answered_and_memory_is_bounded(
    attack: Callable[[Attack], None], attacked: tuple[RunningServer, str], is_long: bool, findings: Findings
) -> None:
    server, name = attacked
    (worker,) = server.workers()
    port = int(server.address.rpartition(":")[2])
    num_files, before = len(open_files(worker)), footprint(server.pid)
    with (
        CallersApart(
            server.address,
            questions(VERSION.ids),
            rate_per_s=GOOD_RATE_PER_S,
            num_callers=4,
            connection=Connection(token=TOKEN),
        ) as callers,
        ExitStack() as connections,
    ):
        attack(Attack(port=port, scale=20 if is_long else 1, connections=connections))
        callers.wait_for_answers(100 if is_long else 5)
        after = footprint(server.pid)
    failed = [call for call in callers.calls if not call.is_answered]
    wrong = RightAnswers({name: VERSION}).wrong(callers.calls)
    proof = f"network attack, {attack.__name__}"
    growth = after.rss_bytes - before.rss_bytes
    findings.add(proof, "good calls meanwhile", len(callers.calls))
    findings.add(proof, "good calls that failed or got a wrong answer", len(failed) + len(wrong), allowed="0")
    findings.add(proof, "good callers' p99, ms", latency_ms(callers.calls, 99))
    findings.add(proof, "RSS during the attack less before, MiB", growth / 2**20, allowed="120")
    assert not failed, said(failed)
    assert not wrong
    assert server.workers() == {worker}
    assert "Traceback" not in server.log
    assert growth < MAX_GROWTH_BYTES + MAX_REPLY_BYTES
    while len(open_files(worker)) > num_files + 8:  # the closed connections are noticed; the rest is a leak
        with Http2Connection(port) as one:
            one.wait_until_read()
