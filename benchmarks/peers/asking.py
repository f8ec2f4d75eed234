"""Single calls of a server, one after the other, where nothing is measured."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from re4.benchmarks.load_generator.call_errors import FailedCallError
from re4.benchmarks.load_generator.transport import Callee
from re4.common.errors import ServerError

_TIMEOUT_S: Final = 10.0
_TRY_S: Final = 1.0
_PAUSE_S: Final = 0.2


def ask(callee: Callee, address: str, payloads: Sequence[bytes]) -> list[bytes]:
    """Replies to some requests.

    Raises:
        ServerError: a call failed.
    """

    async def ask_all() -> list[bytes]:
        link = callee.link(address, 1)
        try:
            await asyncio.wait_for(link.connect(), _TIMEOUT_S)
            return [await link.call(0, payload, _TIMEOUT_S) for payload in payloads]
        finally:
            await link.close()

    try:
        return asyncio.run(ask_all())
    except (FailedCallError, TimeoutError) as error:
        raise ServerError(f"{address} does not answer the requests of this benchmark: {error}") from None


def wait_until_answered(
    callee: Callee,
    address: str,
    payload: bytes,
    *,
    timeout_s: float,
    problem: Callable[[], str | None],
) -> None:
    """Ask until there is an answer.

    Args:
        callee: How the server is called.
        address: Where it is to be.
        payload: What to ask.
        timeout_s: When to give up.
        problem: Looked at in between: why there will be no answer.

    Raises:
        ServerError: there was none in time, or will be none.
    """

    async def ask_again_and_again() -> None:
        until = time.monotonic() + timeout_s
        link = callee.link(address, 1)
        try:
            while True:
                try:
                    await asyncio.wait_for(link.connect(), _TRY_S)
                    await link.call(0, payload, _TIMEOUT_S)
                    return
                except (FailedCallError, TimeoutError) as error:
                    if found := problem():
                        raise ServerError(found) from None
                    if time.monotonic() > until:
                        raise ServerError(
                            f"no answer from {address} within {timeout_s:g} s: {error}"
                        ) from None
                await asyncio.sleep(_PAUSE_S)
        finally:
            await link.close()

    asyncio.run(ask_again_and_again())
