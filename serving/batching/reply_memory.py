"""The memory of replies that their callers have not read: bounded for each caller and in all.

HTTP/2 lets a caller stop reading. gRPC then holds the whole reply until the caller reads it or the
call ends. gRPC in Python cannot end a call after its reply; only the caller's deadline or the end
of the connection does.
"""

from re4.common.errors import UnreadRepliesError


class ReplyMemory:
    """Counts the bytes of replies in flight. Belongs to one event loop."""

    def __init__(self, max_bytes: int, max_bytes_per_caller: int) -> None:
        """Start without a reply.

        Args:
            max_bytes: Most bytes in all. A reply that is alone may be larger.
            max_bytes_per_caller: Most bytes of one caller, likewise.
        """
        self._max_bytes = max_bytes
        self._max_bytes_per_caller = max_bytes_per_caller
        self._bytes_of: dict[str, int] = {}
        self.num_bytes = 0

    def begin(self, caller: str) -> "HeldReply":
        """Begin a reply.

        Args:
            caller: Name of the token, or the address of the connection.

        Raises:
            UnreadRepliesError: the caller, or all callers together, hold as much as is allowed.
        """
        self._check(caller, 1, 0)
        return HeldReply(self, caller)

    def _check(self, caller: str, num_more: int, num_own: int) -> None:
        """Raise if a reply of `num_own` bytes cannot grow, unless it is the only one."""
        of_caller = self._bytes_of.get(caller, 0)
        if of_caller > num_own and of_caller + num_more > self._max_bytes_per_caller:
            raise UnreadRepliesError("this caller", of_caller, self._max_bytes_per_caller)
        if self.num_bytes > num_own and self.num_bytes + num_more > self._max_bytes:
            raise UnreadRepliesError("all callers", self.num_bytes, self._max_bytes)

    def _add(self, caller: str, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        of_caller = self._bytes_of.get(caller, 0) + num_bytes
        if of_caller:
            self._bytes_of[caller] = of_caller
        else:
            self._bytes_of.pop(caller, None)


class HeldReply:
    """A reply that is made, and then held until its call ends."""

    __slots__ = ("_caller", "_memory", "_num_bytes")

    def __init__(self, memory: ReplyMemory, caller: str) -> None:
        self._memory = memory
        self._caller = caller
        self._num_bytes = 0

    def grow(self, num_more: int) -> None:
        """Count more bytes.

        Raises:
            UnreadRepliesError: with them the caller, or all callers, would hold too much.
        """
        if num_more > 0:
            self._memory._check(self._caller, num_more, self._num_bytes)
        self._memory._add(self._caller, num_more)
        self._num_bytes += num_more

    def finish(self, num_bytes: int) -> None:
        """Count the whole reply, in place of what was counted of it.

        Raises:
            UnreadRepliesError: as for `grow`.
        """
        self.grow(num_bytes - self._num_bytes)

    def recount(self, num_bytes: int) -> None:
        """Count these bytes in place of what was counted, though there be too many: they are held already."""
        self._memory._add(self._caller, num_bytes - self._num_bytes)
        self._num_bytes = num_bytes

    def release(self) -> None:
        """Count the reply no longer: its call has ended."""
        self._memory._add(self._caller, -self._num_bytes)
        self._num_bytes = 0
