"""A plain HTTP/2 connection, for calls that no gRPC client would make."""

import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Self

from running_server import DEADLINE_S

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ACK, END_HEADERS, END_STREAM = 1, 4, 1
CANCEL = 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def header_block(method: str, fields: Mapping[str, str] = {}) -> bytes:
    """Encode the header fields of a call, none of them by the table of the connection."""
    all_fields = {
        ":path": f"/re4.v1.Retrieval/{method}",
        ":authority": "a",
        "content-type": "application/grpc",
        "te": "trailers",
        **fields,
    }
    return b"\x83\x86" + b"".join(
        b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in all_fields.items()
    )


class Http2Connection:
    """Sends frames; reads only to wait for the answer to a ping. Answers the pings that it reads."""

    def __init__(self, port: int, settings: bytes = b"") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
        self._file = self._socket.makefile("rb")
        self._next_stream = 1
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
        while (SETTINGS, 0) not in ((kind, flags) for kind, flags, _ in self._frames(1)):
            pass
        self._socket.sendall(frame(SETTINGS, ACK, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def begin(self, method: str, fields: Mapping[str, str] = {}) -> int:
        """Send the headers of a call, with any further fields; its stream."""
        stream = self.next_stream()
        self._socket.sendall(frame(HEADERS, END_HEADERS, stream, header_block(method, fields)))
        return stream

    def next_stream(self) -> int:
        """Number of a new stream."""
        self._next_stream += 2
        return self._next_stream - 2

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def send(self, stream: int, message: bytes, *, is_compressed: bool = False) -> None:
        """Send the message of a call in frames, and end it."""
        data = bytes((is_compressed,)) + struct.pack(">I", len(message)) + message
        for start in range(0, len(data), 1 << 14):
            self._socket.sendall(frame(DATA, 0, stream, data[start : start + (1 << 14)]))
        self._socket.sendall(frame(DATA, END_STREAM, stream))

    def reset(self, stream: int) -> None:
        self._socket.sendall(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))

    def wait_until_read(self) -> None:
        """Wait until the server has read everything that was sent."""
        self._socket.sendall(frame(PING, 0, 0, b"are read"))
        while (PING, ACK, b"are read") not in self._frames(1):
            pass

    def wait_for(self, wanted: int) -> None:
        """Wait for a frame of a kind."""
        while all(kind != wanted for kind, _, _ in self._frames(1)):
            pass

    def wait_for_headers(self, num: int) -> None:
        """Wait until so many calls have an answer or a status: its headers need no window."""
        while num:
            num -= sum(kind == HEADERS for kind, _, _ in self._frames(1))

    def _frames(self, num: int) -> Iterator[tuple[int, int, bytes]]:
        for _ in range(num):
            head = self._file.read(9)
            if len(head) < 9:
                raise ConnectionError("the server closed the connection")
            kind, flags, payload = head[3], head[4], self._file.read(int.from_bytes(head[:3], "big"))
            if kind == PING and not flags & ACK:  # a connection that does not answer is closed
                self._socket.sendall(frame(PING, ACK, 0, payload))
            yield kind, flags, payload
