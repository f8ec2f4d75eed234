"""The message of a call, received within a time limit.

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

_LEAVE_S: Final = 0.01
"""Time for gRPC to cancel the call of a caller that left: its message ends first."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_log = logging.getLogger(__name__)


class FirstMessages:
    """Receives the message of each call. Belongs to one event loop."""

    def __init__(self, timeout_s: float) -> None:
        """Start without a call.

        Args:
            timeout_s: A call whose message is not complete by then ends with DEADLINE_EXCEEDED.
        """
        self._timeout_s = timeout_s
        self.late_details: Final = (
            f"no complete message came within {timeout_s:g} s of the call's start (message_timeout_s)"
        )
        # In order of arrival, thus of deadlines: one timer is enough for all calls.
        self._deadlines_s: dict[Context, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def num_waiting(self) -> int:
        """How many calls wait for their message."""
        return len(self._deadlines_s)

    async def read(self, context: Context) -> bytes:
        """Return the message of a call.

        Raises:
            RequestError: the caller ended the call without a message.
            grpc.aio.AbortError: the time limit has passed, and the caller has the status.
        """
        data = await self.next(context)
        if data is None:
            await asyncio.sleep(_LEAVE_S)
            raise RequestError("the call ended without a message; send one, which may be empty")
        return data

    async def next(self, context: Context) -> bytes | None:
        """Return the next message of a call; None where the caller sends no more.

        Raises:
            grpc.aio.AbortError: the time limit has passed, and the caller has the status.
        """
        loop = asyncio.get_running_loop()
        self._deadlines_s[context] = loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._end_late_calls)
        try:
            data = await context.read()
        finally:
            del self._deadlines_s[context]
        if data is grpc.aio.EOF:
            return None
        assert isinstance(data, bytes)
        return data

    def _end_late_calls(self) -> None:
        """End the calls that are late, and wait for the next deadline."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for context, deadline_s in self._deadlines_s.items():
            if deadline_s > loop.time():
                self._timer = loop.call_at(deadline_s, self._end_late_calls)
                return
            if not context.done():
                ending = loop.create_task(self._end(context))
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
