"""Calls that no gRPC client would make get the same statuses from every transport."""

import gzip
import socket
import struct
import zlib
from collections.abc import Sequence

import pytest
from ngh2 import Connection, Role
from ngh2.events import ResponseReceived, StreamClosed, TrailersReceived
from running_server import DEADLINE_S, RunningServer

pytestmark = pytest.mark.transports("native", "grpcio")

Fields = Sequence[tuple[bytes, bytes]]

EMPTY = b"\0\0\0\0\0"
BAD_TIME = "Error parsing 'grpc-timeout' metadata"
BOMB = gzip.compress(bytes(32 << 20))
ENDED = "the call ended without a message"


def message(data: bytes, flags: int = 0) -> bytes:
    return bytes((flags,)) + struct.pack(">I", len(data)) + data


def encoded(encoding: bytes) -> Fields:
    return [(b"grpc-encoding", encoding)]


def outcome(server: RunningServer, more: Fields, body: bytes | None, **instead: bytes) -> tuple[str, str]:
    """Status and text of a call of Info, or how its stream was reset."""
    host, _, port = server.address.rpartition(":")
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/re4.v1.Retrieval/Info",
        b":authority": b"x",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    } | {b":" + name.encode(): value for name, value in instead.items()}
    client = Connection(Role.CLIENT)
    client.initiate_connection()
    stream = client.send_request([*((k, v) for k, v in fields.items() if v), *more], end_stream=body is None)
    if body is not None:
        client.send_data(stream, body, end_stream=True)
    found: dict[bytes, bytes] = {}
    with socket.create_connection((host, int(port)), DEADLINE_S) as connection:
        connection.sendall(client.data_to_send())
        while data := connection.recv(1 << 16):
            client.receive_data(data)
            for event in client.events():
                if isinstance(event, ResponseReceived | TrailersReceived):
                    found |= dict(event.headers)
                if isinstance(event, StreamClosed):
                    status = found.get(b"grpc-status", b"reset").decode()
                    return status, found.get(b"grpc-message", b"").decode()
            connection.sendall(client.data_to_send())
    raise AssertionError("the connection was closed without an answer")


CASES: dict[str, tuple[Fields, bytes | None, str, str]] = {
    "an empty message": ([], EMPTY, "0", ""),
    "two messages": ([], EMPTY * 2, "0", ""),
    "a message and half a prefix": ([], EMPTY + b"abc", "0", ""),
    "unknown flags": ([], message(b"", 2), "0", ""),
    "no data": ([], None, "3", ENDED),
    "empty data": ([], b"", "3", ENDED),
    "half a prefix": ([], b"\0\0", "3", ENDED),
    "half a message": ([], message(b"abc")[:-1], "3", ENDED),
    "gzip": (encoded(b"gzip"), message(gzip.compress(b""), 1), "0", ""),
    "gzip, not compressed": (encoded(b"gzip"), EMPTY, "0", ""),
    "gzip of no bytes": (encoded(b"gzip"), message(b"", 1), "0", ""),
    "deflate": (encoded(b"deflate"), message(zlib.compress(b""), 1), "0", ""),
    "no encoding": ([], message(gzip.compress(b""), 1), "13", "Compression bit set but no encoding"),
    "damaged gzip": (encoded(b"gzip"), message(b"hello", 1), "13", "Decompression failed due to zlib"),
    "half a gzip": (encoded(b"gzip"), message(gzip.compress(b"")[:-4], 1), "13", "due to data error"),
    "a gzip and more": (encoded(b"gzip"), message(gzip.compress(b"") * 2, 1), "13", "not all input consumed"),
    "an unknown encoding": (encoded(b"snappy"), EMPTY, "13", "Error parsing 'grpc-encoding' metadata"),
    "a bomb": (encoded(b"gzip"), message(BOMB, 1), "8", "Decompressed message larger than max"),
    "a long message": ([], b"\0\x00\x20\0\0rest", "8", "message larger than max (2097152 vs. 1048576)"),
    "a time limit of words": ([(b"grpc-timeout", b"abc")], EMPTY, "13", BAD_TIME),
    "a negative time limit": ([(b"grpc-timeout", b"-1S")], EMPTY, "13", BAD_TIME),
    "no time": ([(b"grpc-timeout", b"0S")], EMPTY, "4", "Deadline Exceeded"),
    "a long time": ([(b"grpc-timeout", b"99999999H")], EMPTY, "0", ""),
    "bytes": ([(b"a-bin", b"YWJj")], EMPTY, "0", ""),
    "bytes that are none": ([(b"a-bin", b"***")], EMPTY, "13", "Error parsing 'a-bin' metadata"),
    "bytes that are no text": ([(b"a", b"\xff\xfe")], EMPTY, "0", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_status_of_a_call(name: str, server: RunningServer) -> None:
    more, body, status, text = CASES[name]
    found = outcome(server, more, body)
    assert found[0] == status
    assert text in found[1]


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [("path", b"/a/b", "12"), ("path", b"/re4.v1.Retrieval/Train", "12"), ("method", b"GET", "reset")],
)
def test_the_status_of_another_request(field: str, value: bytes, status: str, server: RunningServer) -> None:
    found = outcome(server, [], EMPTY, **{field: value})
    assert found[0] == status
    assert "Method not found!" in found[1] or status == "reset"


def test_too_much_metadata_is_rejected(server: RunningServer, transport: str) -> None:
    """gRPC's own library announces its limit, and leaves it to clients to keep it."""
    status, text = outcome(server, [(b"a", b"v" * 20_000)], EMPTY)
    if transport == "native":
        assert (status, text) == ("8", "received metadata size exceeds hard limit (20323 vs. 16384)")
