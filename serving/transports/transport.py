"""The interface of a transport: methods that answer calls, and the server that hands the calls over.

A method is written once, for every transport. It takes a call and returns the reply, both bytes, or
raises `StatusError`. A method whose calls share batches may have a second form, which takes all
calls that a transport has at once, without a task for each.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

from re4.serving.auth.tokens import Metadata
from re4.serving.host.addresses import Address
from re4.serving.protocol.status_codes import StatusCode

ResponseMetadata: TypeAlias = tuple[tuple[str, str], ...]

RETRY_PUSHBACK: Final = "grpc-retry-pushback-ms"
"""Trailing metadata of a rejected call: milliseconds to wait before the next try. gRPC clients
whose retry policy includes RESOURCE_EXHAUSTED obey it by themselves (gRFC A6)."""

MIN_PING_INTERVAL_S: Final = 10
"""Shortest interval of a client's pings that no data separates; clients of several servers ping them."""

MESSAGE_TOO_LARGE: Final = "Received message larger than max ({} vs. {})"
"""Details of RESOURCE_EXHAUSTED for a message over the limit, as gRPC's core writes them."""


class StatusError(Exception):
    """A call ends with a status other than OK."""

    def __init__(self, code: StatusCode, details: str, metadata: ResponseMetadata = ()) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.metadata = metadata
        """Trailing metadata."""


class ServerCall(Protocol):
    """A call, as a transport hands it over."""

    @property
    def peer(self) -> str:
        """The address of the caller's connection."""
        ...

    def metadata(self) -> Metadata:
        """Return the metadata that the caller sent."""
        ...

    def time_left(self) -> float | None:
        """Return the seconds until the caller's deadline; None where there is none."""
        ...

    async def read(self) -> bytes:
        """Return the call's only message.

        Raises:
            RequestError: the caller ended the call without a message.
            StatusError: no complete message came within the time limit.
        """
        ...

    async def next(self) -> bytes | None:
        """Return the next message of a stream; None where the caller sends no more.

        Raises:
            StatusError: no complete message came within the time limit.
        """
        ...

    async def write(self, message: bytes) -> None:
        """Send one message of a stream; return when the transport can take another."""
        ...

    def on_end(self, callback: Callable[[], None], recount: Callable[[int], None]) -> None:
        """Run a callback when the transport holds the call and its reply no longer.

        Args:
            callback: Run once.
            recount: Takes the number of bytes that the transport holds, where it is not that of the reply.
        """
        ...


class WholeCall(ServerCall, Protocol):
    """A call whose message is there, and that is answered without a coroutine."""

    @property
    def message(self) -> bytes:
        """The call's only message."""
        ...

    def discard_message(self) -> None:
        """Release the memory of the message: the call will fail."""
        ...

    def respond(self, reply: bytes) -> None:
        """End the call with a reply."""
        ...

    def fail(self, error: StatusError) -> None:
        """End the call with a status."""
        ...

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Set the callback for a call that ends, by its caller or its deadline, before its answer."""
        ...


class Rejection(NamedTuple):
    """The end of a call that is rejected by its header fields."""

    status: StatusError
    """The same object for calls that arrive together, but where each has its own."""
    fields: tuple[tuple[bytes, bytes], ...]
    """Further trailing fields of this call."""
    is_held: bool
    """Whether to send it later."""


class EarlyRejector(Protocol):
    """Rejects the calls of a method before their messages are read."""

    @property
    def is_armed(self) -> bool:
        """Whether calls must be offered to `reject` now."""
        ...

    def reject(self, fields: Mapping[bytes, bytes], time_left_s: float | None) -> Rejection | None:
        """Return the rejection of a call that arrives now; None where it must be handed over.

        Args:
            fields: Its header fields.
            time_left_s: Seconds until the caller's deadline; None for none.
        """
        ...


Answer: TypeAlias = Callable[[ServerCall], Awaitable[bytes]]
AnswerMany: TypeAlias = Callable[[Sequence[WholeCall]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A unary method, or one with streams."""

    path: str
    """Such as `/re4.v1.Retrieval/Retrieve`."""
    answer: Answer | None = None
    """Returns the reply. None for a method with a stream of replies, and maybe one of messages."""
    answer_stream: Callable[[ServerCall], Awaitable[None]] | None = None
    """Reads the messages by `ServerCall.read` or `next`, and sends the replies by `ServerCall.write`."""
    answer_many: AnswerMany | None = None
    """Does the same as `answer` for some calls at once: each ends by `respond` or `fail`, maybe later."""
    early: EarlyRejector | None = None
    """Rejects some calls before they are handed over to `answer_many`; None to hand all over."""

    @property
    def is_streaming(self) -> bool:
        """Whether a call has a stream of replies."""
        return self.answer is None


class Transport(Protocol):
    """A gRPC server of some methods. Belongs to one event loop."""

    async def start(self, address: Address) -> int:
        """Listen.

        Returns:
            The port: the chosen one where 0 was given.

        Raises:
            ServerError: the address cannot be listened on.
        """
        ...

    async def stop(self, grace_s: float, idle: Awaitable[None]) -> None:
        """Accept no further call, wait for the calls in flight, and close.

        Args:
            grace_s: How long calls in flight may take.
            idle: Ends when the methods have answered every call that they began.
        """
        ...
