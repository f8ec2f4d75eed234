"""The message of a call on `grpcio`, received within a time limit.

gRPC starts the handler of a unary method after the message, and waits for it as long as the
connection lasts. So the methods are registered as streaming ones, which are the same on the wire,
and their handlers read the one message. Thus a call can also be rejected by its metadata, before
its message.
"""

import asyncio
import logging
from typing import Any, Final, TypeAlias

import grpc

from re4.common.errors import RequestError
from re4.serving.transports.message_deadlines import NO_MESSAGE, MessageDeadlines

_LEAVE_S: Final = 0.01
"""Time for gRPC to cancel the call of a caller that left: its message ends first."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_log = logging.getLogger(__name__)


class FirstMessages:
    """Receives the messages of calls. Belongs to one event loop."""

    def __init__(self, timeout_s: float) -> None:
        """Start without a call.

        Args:
            timeout_s: A call whose message is not complete by then ends with DEADLINE_EXCEEDED.
        """
        self._deadlines: MessageDeadlines[Context] = MessageDeadlines(timeout_s, self._end_late)
        self.late_details: Final = self._deadlines.late_details
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def num_waiting(self) -> int:
        """How many calls wait for their message."""
        return self._deadlines.num_waiting

    async def read(self, context: Context) -> bytes:
        """Return the message of a call.

        Raises:
            RequestError: the caller ended the call without a message.
            grpc.aio.AbortError: the time limit has passed, and the caller has the status.
        """
        data = await self.next(context)
        if data is None:
            await asyncio.sleep(_LEAVE_S)
            raise RequestError(NO_MESSAGE)
        return data

    async def next(self, context: Context) -> bytes | None:
        """Return the next message of a call; None where the caller sends no more.

        Raises:
            grpc.aio.AbortError: the time limit has passed, and the caller has the status.
        """
        self._deadlines.add(context)
        try:
            data = await context.read()
        finally:
            self._deadlines.discard(context)
        if data is grpc.aio.EOF:
            return None
        assert isinstance(data, bytes)
        return data

    def _end_late(self, context: Context) -> None:
        if not context.done():
            ending = asyncio.get_running_loop().create_task(self._end(context))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end(self, context: Context) -> None:
        # The pending read must not be cancelled: gRPC's core still writes to its memory. The abort
        # ends it.
        try:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, self.late_details)
        except grpc.aio.AbortError:
            pass
        except Exception as error:  # the caller left meanwhile
            _log.debug("a call without a message was gone: %s", error)
