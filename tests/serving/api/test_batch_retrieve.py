"""Many users in one call: the answers that each would get alone, errors that stay with their user."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from grpcurl_command import grpcurl
from in_process_server import Held, call, drive, serving, until_in_flight
from running_server import DEADLINE_S, RunningServer, raw_call
from small_bundles import SmallVersion

from re4 import Candidates, RetrievalClient
from re4.common.errors import BundleMismatchError, RequestError, ServerError
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.server import RetrievalServer
from re4.serving.retrieval.pipeline import Query
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RetrievalClient]:
    with RetrievalClient(server.address) as opened:
        yield opened


def assert_same(found: Candidates, alone: Candidates) -> None:
    assert found.item_ids == alone.item_ids
    np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)
    others = found.interest_index != alone.interest_index
    if alone.interests is None:
        assert not others.any()
    else:  # rounding decides between equal interests, which a history of one item has
        vectors_KD = alone.interests.vectors
        numbers, alone_numbers = found.interest_index[others], alone.interest_index[others]
        np.testing.assert_allclose(vectors_KD[numbers], vectors_KD[alone_numbers], rtol=1e-4, atol=1e-5)
    assert found.version == alone.version
    assert found.num_unknown_history_ids == alone.num_unknown_history_ids
    assert found.is_popularity_fallback == alone.is_popularity_fallback
    assert (found.interests is None) == (alone.interests is None)
    if alone.interests is not None:
        np.testing.assert_allclose(found.interests.vectors, alone.interests.vectors, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.interests.attention, alone.interests.attention, rtol=1e-4, atol=1e-5)
        assert found.interests.attended_item_ids == alone.interests.attended_item_ids


@pytest.mark.parametrize("options", [{}, {"exclude_history": True, "merge_policy": "equal-quota"}])
@pytest.mark.parametrize("num_users", [1, 64, 150])
def test_every_user_gets_what_a_call_alone_gets(
    num_users: int, options: dict[str, Any], client: RetrievalClient, small_version: SmallVersion
) -> None:
    """150 users are three parts: two full and a rest."""
    rng = np.random.default_rng(num_users)
    ids = np.array(small_version.ids)
    histories = [
        ids[rng.integers(60, size=1 + u % 9)].tolist() + ["unknown"] * (u % 3) for u in range(num_users)
    ]
    exclude = [ids[rng.integers(60, size=u % 4)].tolist() for u in range(num_users)]
    found = client.retrieve_batch(histories, 7, exclude=exclude, return_interests=True, **options)
    assert len(found) == num_users
    for user in range(0, num_users, 5):
        alone = client.retrieve(histories[user], 7, exclude=exclude[user], return_interests=True, **options)
        assert_same(found[user], alone)


def test_integer_ids_and_the_popular_fallback(int_server: RunningServer, int_version: SmallVersion) -> None:
    histories = [[int_version.ids[3], int_version.ids[4]], [], [1], [int_version.ids[9], int_version.ids[2]]]
    popular = [int_version.ids[row] for row in int_version.popular_rows]
    with RetrievalClient(int_server.address) as client:
        found = client.retrieve_batch(histories, 5, exclude=[[], [popular[0]], [], []])
        for user in (0, 3):
            assert_same(found[user], client.retrieve(histories[user], 5))
    assert found[1].item_ids == popular[1:6]
    assert found[2].item_ids == popular[:5]
    assert [one.is_popularity_fallback for one in found] == [False, True, True, False]
    assert found[2].num_unknown_history_ids == 1
    assert [one.interests for one in found] == [None] * 4


def test_an_error_of_one_user_fails_that_user_alone(server: RunningServer, client: RetrievalClient) -> None:
    good = pb.RetrieveRequest(history=pb.ItemIds(strings=["item-1-é"]), num_candidates=3)
    users = [
        good,
        pb.RetrieveRequest(history=pb.ItemIds(strings=["item-1-é"])),
        good,
        pb.RetrieveRequest(num_candidates=3),
        pb.RetrieveRequest(history=pb.ItemIds(ints=[4]), num_candidates=3, return_interests=True),
        pb.RetrieveRequest(history=pb.ItemIds(strings=["item-1-é"]), num_candidates=3, return_interests=True),
    ]
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary("/re4.v1.Retrieval/BatchRetrieve")
        request = pb.BatchRetrieveRequest(users=users).SerializeToString()
        reply = pb.BatchRetrieveReply.FromString(method(request, timeout=DEADLINE_S))
    assert list(reply.num_candidates) == [3, 0, 3, 0, 0, 3]
    assert [(error.user, error.code) for error in reply.errors] == [(1, 3), (3, 9), (4, 3)]
    assert reply.errors[0].message == "num_candidates is 0; it must be from 1 to 1000"
    assert "history is empty" in reply.errors[1].message
    expected = client.retrieve(["item-1-é"], 3)
    assert list(reply.items.strings) == expected.item_ids * 3
    assert len(reply.scores) == len(reply.interest_numbers) == 9
    assert [len(one.vectors) > 0 for one in reply.interests] == [False] * 5 + [True]
    assert len(reply.is_popularity_fallback) == len(reply.num_unknown_history_ids) == len(users)


def test_the_client_gives_errors_in_their_users_place(client: RetrievalClient) -> None:
    found = client.retrieve_batch([["item-1-é"], ["nobody knows"], ["item-2-é", "item-3-é"]], 3)
    assert [type(one) for one in found] == [Candidates, ServerError, Candidates]
    assert "FAILED_PRECONDITION for user 1: none of the 1 ids in history is known" in str(found[1])
    assert_same(found[2], client.retrieve(["item-2-é", "item-3-é"], 3))


def test_a_call_has_a_limit_of_users(client: RetrievalClient, server: RunningServer) -> None:
    assert client.info()["max_num_users"] == 256
    assert len(client.retrieve_batch([["item-1-é"]] * 256, 1)) == 256
    for num_users in (0, 257):
        with pytest.raises(ServerError, match=rf"INVALID.*users has {num_users} requests; .* from 1 to 256"):
            client.retrieve_batch([["item-1-é"]] * num_users, 1)
    with pytest.raises(RequestError, match="exclude has 1 entries for 2 histories"):
        client.retrieve_batch([["item-1-é"]] * 2, exclude=[[]])
    with grpc.insecure_channel(server.address) as channel:
        not_utf8 = b"\x0a\x06\x0a\x04\x0a\x02\xff\xfe"
        code, details = raw_call(channel, "BatchRetrieve", not_utf8 * 2)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "users[0].history.strings[0] is not valid UTF-8" in details


def test_grpcurl_asks_for_many_users(server: RunningServer, small_version: SmallVersion) -> None:
    users = [{"history": {"strings": [small_version.ids[row]]}, "numCandidates": 4} for row in (3, 5)]
    question = json.dumps({"users": [*users, {"numCandidates": 4}]})
    done = grpcurl("-d", question, server.address, "re4.v1.Retrieval/BatchRetrieve")
    answer = json.loads(done.stdout)
    expected = [*small_version.best([3], 4), *small_version.best([5], 4)]
    assert answer["items"]["strings"] == [small_version.ids[row] for row in expected]
    assert answer["num_candidates"] == [4, 4, 0]
    assert [(error["user"], error["code"]) for error in answer["errors"]] == [(2, 9)]


def batch_of(num_users: int) -> bytes:
    users = [pb.RetrieveRequest(history=pb.ItemIds(strings=["item-1-é"]), num_candidates=5)] * num_users
    return pb.BatchRetrieveRequest(users=users).SerializeToString()


def call_batch(channel: grpc.aio.Channel, data: bytes) -> Any:
    return channel.unary_unary("/re4.v1.Retrieval/BatchRetrieve")(data, timeout=DEADLINE_S)


class Noting(Held):
    """Notes the size of each batch."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.sizes: list[int] = []

    def run(self, queries: Sequence[Query]) -> Any:
        self.sizes.append(len(queries))
        return super().run(queries)


def test_a_large_call_gives_others_their_turn_and_stops_when_its_caller_leaves(snapshot: Snapshot) -> None:
    """Batches hold 8: of a call with 80 users, at most 16 run or wait at a time."""
    held = Noting(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        large = call_batch(channel, batch_of(80))
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        alone = call(channel)
        await until_in_flight(server, 2)
        large.cancel()
        while server._service._num_in_flight > 1:
            await asyncio.sleep(0)
        held.may_leave.set()
        await alone
        assert held.sizes == [8, 1]

    drive(serving(replace(snapshot, pipeline=held)), test)


def test_a_search_that_fails_concerns_its_user_alone(
    snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        index_failure = ""

        def run(self, queries: Sequence[Query]) -> Any:
            answers = snapshot.pipeline.run(queries)
            if len(queries) < 8:
                raise ZeroDivisionError("secret-internals")
            return [*answers[:7], BundleMismatchError("values not finite")]

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        reply = pb.BatchRetrieveReply.FromString(await call_batch(channel, batch_of(10)))
        assert list(reply.num_candidates) == [5] * 7 + [0] * 3
        assert [(error.user, error.code) for error in reply.errors] == [(7, 13), (8, 13), (9, 13)]
        assert reply.errors[0].message == "values not finite"
        assert reply.errors[1].message == "this user's search failed; the server's log says why"

    drive(serving(replace(snapshot, pipeline=Failing())), test)
    assert "secret-internals" in caplog.text


def test_a_call_is_admitted_or_shed_as_a_whole(snapshot: Snapshot) -> None:
    """With no wait allowed: a call on an idle server gets all its parts, one behind others gets none."""
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        held.may_leave.set()
        for _ in range(2):
            reply = pb.BatchRetrieveReply.FromString(await call_batch(channel, batch_of(50)))
            assert list(reply.num_candidates) == [5] * 50
        held.entered.clear()
        held.may_leave.clear()
        in_flight = call_batch(channel, batch_of(50))
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        # Its first part runs and its second waits: there is always something to wait for.
        with pytest.raises(grpc.aio.AioRpcError) as shed:
            await call_batch(channel, batch_of(2))
        assert shed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as unread:
            await call(channel, b"not a message")
        assert unread.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, "read, although it is turned away"
        held.may_leave.set()
        reply = pb.BatchRetrieveReply.FromString(await in_flight)
        assert list(reply.num_candidates) == [5] * 50

    drive(serving(replace(snapshot, pipeline=held)), test, max_queue_ms=0)
