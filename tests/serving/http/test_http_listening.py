"""The work beside the calls of HTTP goes on after errors that pass."""

import asyncio
import ssl
from typing import Any

import pytest

from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.host.addresses import Address
from re4.serving.http import http_transport
from re4.serving.http.http_transport import HttpTransport
from re4.serving.settings import Limits
from re4.serving.transports.transport import Method, ServerCall


class Certificates:
    """Cannot be read for some time, then others."""

    def __init__(self) -> None:
        self.num_reads = 0
        self.contexts = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2)]

    def newest(self) -> ssl.SSLContext:
        self.num_reads += 1
        if 2 <= self.num_reads <= 4:
            raise OSError(24, "Too many open files")
        return self.contexts[self.num_reads > 4]


def test_an_error_that_passes_ends_neither_listening_nor_the_close_of_idle_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_transport, "_SWEEP_S", 0.001)

    async def test() -> None:
        transport = HttpTransport([], Limits(message_timeout_s=0.05))
        certificates = Certificates()
        transport._tls = certificates  # type: ignore[assignment]
        port = await transport.start(Address(host="127.0.0.1", port=0))
        async with asyncio.timeout(60):
            while transport._context is not certificates.contexts[1]:
                await asyncio.sleep(0.001)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""  # the handshake never comes
        writer.close()
        await transport.stop(0.0, asyncio.sleep(0))

    asyncio.run(test())
    assert caplog.text.count("HTTP goes on with the certificates in use") == 3


def test_an_unread_reply_counts_with_the_bytes_of_its_json() -> None:
    reply = pb.RetrieveReply(items=pb.ItemIds(strings=["a"] * 50), scores=[0.1] * 50).SerializeToString()
    counted: list[int] = []

    async def answer(call: ServerCall) -> bytes:
        call.on_end(lambda: counted.append(0), counted.append)
        await call.read()
        return reply

    async def test() -> bytes:
        transport = HttpTransport([Method(path="/re4.v1.Retrieval/Retrieve", answer=answer)], Limits())
        received = [{"type": "http.request", "body": b"{}"}]
        sent: list[bytes] = []

        async def receive() -> dict[str, Any]:
            return received.pop() if received else await asyncio.Future()

        async def send(event: dict[str, Any]) -> None:
            sent.append(event.get("body", b""))

        scope = {
            "path": "/v1/retrieve",
            "method": "POST",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
        }
        await transport._answer(scope, receive, send)
        return b"".join(sent)

    text = asyncio.run(test())
    assert counted == [len(text), 0]
    assert len(text) > len(reply)
