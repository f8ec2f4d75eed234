"""The end of a child process with its parent, also where the parent is killed and the child stopped or stuck.

The parent holds the other end of the child's stdin, which the kernel closes with the parent. A thread waits
for that, so that nothing else that the child waits for delays it.
"""

import ctypes
import os
import select
import signal
import sys
import threading
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_HANG_UP: Final = select.POLLHUP | getattr(select, "POLLRDHUP", 0)
"""Of a pipe; and of a socket, which asyncio uses in place of a pipe."""


def end_with_parent(parent_pid: int, *, within_s: float | None = None) -> None:
    """End this process after its parent's end.

    Call it first of all, in the main thread. On Linux the kernel sends a signal at the end of the thread that
    started this process: SIGKILL, or SIGCONT where this process has time to finish, because a stopped process
    sees nothing. The time ends with SIGALRM, whose default action needs no Python code.

    Args:
        parent_pid: The parent's process id, in its own words: it may have ended before this call.
        within_s: How long this process may take to end by itself; None to be killed at once.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # both are inherited
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    if sys.platform == "linux":
        number = signal.SIGKILL if within_s is None else signal.SIGCONT
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
    stdin = os.dup(sys.stdin.fileno())  # the process may close its own
    threading.Thread(target=_wait_for_end, args=(stdin, within_s), daemon=True).start()


def _wait_for_end(stdin: int, within_s: float | None) -> None:
    poll = select.poll()
    poll.register(stdin, _HANG_UP)  # its content is for others
    poll.poll()
    if within_s is None:
        os._exit(1)
    signal.setitimer(signal.ITIMER_REAL, max(within_s, 1e-6))
