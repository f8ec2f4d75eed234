"""Single calls of a server, one after the other, while nothing is measured."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from re4.benchmarks.load_generator.transport import FailedCallError, Transport
from re4.common.errors import ServerError

_TIMEOUT_S: Final = 10.0
_TRY_S: Final = 1.0
_PAUSE_S: Final = 0.2


def call_all(transport: Transport, address: str, payloads: Sequence[bytes]) -> list[bytes]:
    """Return the replies to some requests.

    Raises:
        ServerError: a call failed.
    """
    try:
        return asyncio.run(_call_all(transport, address, payloads, _TIMEOUT_S))
    except (FailedCallError, TimeoutError) as error:
        raise ServerError(f"{address} does not answer the requests of this benchmark: {error}") from None


def wait_until_answered(
    transport: Transport,
    address: str,
    payload: bytes,
    *,
    timeout_s: float,
    problem: Callable[[], str | None],
) -> None:
    """Repeat a call until there is an answer; `problem` returns why there will never be one.

    Raises:
        ServerError: there was none in time, or will be none.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            asyncio.run(_call_all(transport, address, [payload], _TRY_S))
            return
        except (FailedCallError, TimeoutError) as error:
            if found := problem():
                raise ServerError(found) from None
            if time.monotonic() > until:
                raise ServerError(f"no answer from {address} within {timeout_s:g} s: {error}") from None
        time.sleep(_PAUSE_S)


async def _call_all(
    transport: Transport, address: str, payloads: Sequence[bytes], connect_timeout_s: float
) -> list[bytes]:
    channels = transport.open(address, 1)
    try:
        await asyncio.wait_for(channels.connect(), connect_timeout_s)
        return [await channels.call(0, payload, _TIMEOUT_S) for payload in payloads]
    finally:
        await channels.close()
