"""The client for an event loop gives what the other client gives, and fails as it does."""

import asyncio
import inspect
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from client_values import values_of
from running_server import RunningServer

from re4 import AsyncRetrievalClient, AttributeFilter, RequestError, RetrievalClient, ServerError

HISTORY = ["item-1-é", "item-4-é", "nobody"]
HISTORIES = [HISTORY, ["nobody"], ["item-9-é"]]
OPTIONS: dict[str, Any] = {
    "return_interests": True,
    "num_reasons": 2,
    "exclude_history": True,
    "filters": [AttributeFilter(attribute="colour", values=["red", "green"])],
}


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_both_clients_return_the_same(server: RunningServer) -> None:
    async def ask() -> list[Any]:
        async with AsyncRetrievalClient(server.address) as client:
            return [
                await client.retrieve(HISTORY, 10, exclude=["item-2-é"], **OPTIONS),
                await client.retrieve_batch(HISTORIES, 10, exclude=[["item-2-é"], [], []], **OPTIONS),
                await client.encode(HISTORY),
                await client.info(),
            ]

    with RetrievalClient(server.address) as client:
        expected = [
            client.retrieve(HISTORY, 10, exclude=["item-2-é"], **OPTIONS),
            client.retrieve_batch(HISTORIES, 10, exclude=[["item-2-é"], [], []], **OPTIONS),
            client.encode(HISTORY),
            client.info(),
        ]
    found = asyncio.run(ask())
    assert list(map(values_of, found[:3])) == list(map(values_of, expected[:3]))
    assert found[3].keys() == expected[3].keys()
    assert found[3]["version"] == expected[3]["version"]


def test_calls_of_one_loop_share_the_connection(server: RunningServer) -> None:
    async def ask() -> list[Any]:
        async with AsyncRetrievalClient(server.address) as client:
            return await asyncio.gather(*(client.retrieve([f"item-{i}-é"], 5) for i in range(20)))

    assert all(len(found.item_ids) == 5 for found in asyncio.run(ask()))


def test_a_wrong_request_is_not_sent() -> None:
    async def ask() -> None:
        async with AsyncRetrievalClient("127.0.0.1:1") as client:
            await client.retrieve(["a", 1])  # type: ignore[list-item]

    with pytest.raises(RequestError, match="history holds int, str"):
        asyncio.run(ask())


def test_errors_are_those_of_the_other_client(server: RunningServer) -> None:
    async def ask(address: str, num_candidates: int, timeout_s: float = 10) -> None:
        async with AsyncRetrievalClient(address, timeout_s=timeout_s) as client:
            await client.retrieve(HISTORY, num_candidates)

    with pytest.raises(ServerError, match=r"UNAVAILABLE from 127\.0\.0\.1:1.*re4 serve --bundles"):
        asyncio.run(ask("127.0.0.1:1", 5))
    with pytest.raises(ServerError, match=r"INVALID_ARGUMENT from .*num_candidates is 0"):
        asyncio.run(ask(server.address, 0))
    with silent_server() as address:
        with pytest.raises(ServerError, match=r"DEADLINE_EXCEEDED: .* did not answer within 0.01 seconds"):
            asyncio.run(ask(address, 5, timeout_s=0.01))
        with (
            RetrievalClient(address, timeout_s=0.01) as client,
            pytest.raises(ServerError, match=r"DEADLINE_EXCEEDED: .* did not answer within 0.01 seconds"),
        ):
            client.info()


@pytest.mark.parametrize("name", ["__init__", "retrieve", "retrieve_batch", "encode", "info"])
def test_both_clients_take_the_same_arguments(name: str) -> None:
    one, other = (getattr(client, name) for client in (RetrievalClient, AsyncRetrievalClient))
    assert inspect.signature(one) == inspect.signature(other)
