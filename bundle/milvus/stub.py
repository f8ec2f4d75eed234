"""Calls of a Milvus server over gRPC, by the generated code of pymilvus: with a time limit, and no retry.

The search of a request needs both, and reads its results as arrays. All else is done by `server.py`.
"""

import base64
import logging
from typing import Any, Final

from re4.bundle.milvus.address import MilvusAddress, authorities, milvus_token
from re4.common.errors import IndexUnavailableError
from re4.common.extras import require

_OPTIONS: Final = {
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
    # A server that was away is found again within a second.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
    # A host that vanished ends no connection.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.keepalive_permit_without_calls": 1,
}


def require_pymilvus() -> None:
    """Check that pymilvus is installed, and leave its log lines out: each error is raised as well.

    Raises:
        UsageError: it is not; the message names the extra.
    """
    require("an index in Milvus", "pymilvus")
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)


class MilvusStub:
    """A connection, made with the first call. Threads may share it."""

    def __init__(self, address: MilvusAddress) -> None:
        """Connect to nothing yet.

        Raises:
            UsageError: pymilvus is not installed.
            SecurityError: the token or the authorities cannot be read.
        """
        require_pymilvus()
        import grpc
        from pymilvus.grpc_gen import milvus_pb2_grpc

        self.address = address
        options = list(_OPTIONS.items())
        self._channel = (
            grpc.secure_channel(address.target, grpc.ssl_channel_credentials(authorities()), options)
            if address.has_tls
            else grpc.insecure_channel(address.target, options)
        )
        self._stub = milvus_pb2_grpc.MilvusServiceStub(self._channel)
        token = milvus_token()
        self._metadata = (("authorization", base64.b64encode(token.encode()).decode()),) if token else ()

    def call(self, name: str, request: Any, timeout_s: float) -> Any:
        """Call a method of the service, and return its reply.

        Raises:
            IndexUnavailableError: no reply within the time, or one that states an error.
        """
        import grpc

        try:
            reply = getattr(self._stub, name)(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise IndexUnavailableError(
                    f"no answer within {timeout_s * 1e3:.0f} ms", is_late=True
                ) from None
            raise IndexUnavailableError(
                f"{code.name}: {error.details()}",
                is_unreachable=code is grpc.StatusCode.UNAVAILABLE,
            ) from None
        except ValueError as error:  # the channel is closed
            raise IndexUnavailableError(str(error)) from None
        status = getattr(reply, "status", reply)
        if status.code or status.error_code:
            raise IndexUnavailableError(status.reason[:300])
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
