"""The calls on histories, against servers as they are started: found at once, by every worker, by user id."""

import asyncio
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from running_server import DEADLINE_S, RE4, RunningServer, raw_call
from small_bundles import SmallVersion
from valkey_server import PROGRAM, ValkeyServer

from re4 import AsyncRetrievalClient, Connection, RetrievalClient, ServerError
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.auth.tokens import token_hash

NOW_MS = int(time.time() * 1e3)
_numbers = iter(range(10**9))


@pytest.fixture(scope="module", params=["lmdb", *(["redis"] if PROGRAM else [])])
def histories(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "lmdb":
        return str(tmp_path_factory.mktemp("store") / "histories")
    running: ValkeyServer = request.getfixturevalue("valkey")
    return running.url


@pytest.fixture(scope="module")
def recording(
    tmp_path_factory: pytest.TempPathFactory, small_version: SmallVersion, histories: str
) -> Iterator[RunningServer]:
    """Two workers with a store."""
    folder = tmp_path_factory.mktemp("recording") / "bundles"
    small_version.publish(folder)
    options = ("--histories", histories, "--num-processes", "2", "--metrics-address", "127.0.0.1:0")
    with RunningServer(folder, *options, "--history-timeout-ms", "5000", "--access-log", "all") as running:
        yield running


@pytest.fixture
def user() -> str:
    return f"a-user-of-the-test-{next(_numbers)}"


def items(small_version: SmallVersion, *places: int) -> list[str]:
    return [str(small_version.ids[place]) for place in places]


def test_the_next_answer_of_every_worker_knows_a_recorded_event(
    recording: RunningServer, small_version: SmallVersion, user: str
) -> None:
    history = items(small_version, 1, 5, 9)
    with RetrievalClient(recording.address) as client:
        assert client.record_events([user] * 3, history, times_ms=[NOW_MS, NOW_MS + 1, NOW_MS + 2]) == 3
    for _ in range(8):  # each client has a connection of its own, and so its own worker
        with RetrievalClient(recording.address) as client:
            by_user, by_history = client.retrieve(user_id=user), client.retrieve(history)
            assert by_user.item_ids == by_history.item_ids
            assert by_user.scores.tolist() == by_history.scores.tolist()


def test_ids_of_the_request_are_newer_than_stored_ones_and_all_are_excluded(
    recording: RunningServer, small_version: SmallVersion, user: str
) -> None:
    stored, session = items(small_version, 2, 7), items(small_version, 11, 13)
    with RetrievalClient(recording.address) as client:
        client.record_events([user, user], stored)
        found = client.retrieve(session, user_id=user, return_interests=True, exclude_history=True)
        assert found.interests is not None
        assert found.interests.attended_item_ids == stored + session
        assert not {*stored, *session} & set(found.item_ids)
        assert found.item_ids == client.retrieve(stored + session, exclude_history=True).item_ids


def test_a_batch_knows_each_user(recording: RunningServer, small_version: SmallVersion, user: str) -> None:
    own, others = items(small_version, 3, 4), items(small_version, 20)
    with RetrievalClient(recording.address) as client:
        client.record_events([user, user, f"{user}-2"], own + others)
        batch = client.retrieve_batch(
            [(), (), own, ()], user_ids=[user, f"{user}-2", "", "nobody"], exclude_history=True
        )
        expected = [client.retrieve(history, exclude_history=True) for history in (own, others, own)]
    assert [found.item_ids for found in batch[:3]] == [found.item_ids for found in expected]
    assert isinstance(batch[3], ServerError)
    assert "FAILED_PRECONDITION" in str(batch[3])


def test_events_are_bounded_ordered_once_and_forgotten(recording: RunningServer, user: str) -> None:
    with RetrievalClient(recording.address) as client:
        times_ms = [NOW_MS + 5, NOW_MS + 3, NOW_MS + 4]
        event_ids = ["e5", "e3", "e4"]
        assert (
            client.record_events([user] * 3, ["five", "three", "4"], times_ms=times_ms, event_ids=event_ids)
            == 3
        )
        assert (
            client.record_events([user] * 3, ["five", "three", "4"], times_ms=times_ms, event_ids=event_ids)
            == 0
        )
        stored = client.get_history(user)
        assert [event.item_id for event in stored] == ["three", "4", "five"]
        assert [event.time_ms for event in stored] == [NOW_MS + 3, NOW_MS + 4, NOW_MS + 5]
        assert [event.item_id for event in client.get_history(user, 1)] == ["five"]
        client.record_events([user] * 300, [f"item {number}" for number in range(300)])
        assert [event.item_id for event in client.get_history(user)][-2:] == ["item 298", "item 299"]
        assert len(client.get_history(user)) == client.info()["max_history_events"] == 100
        client.forget_user(user)
        assert client.get_history(user) == []
        with pytest.raises(ServerError, match="FAILED_PRECONDITION"):
            client.retrieve(user_id=user)


def test_the_asynchronous_client_has_the_same_calls(
    recording: RunningServer, small_version: SmallVersion, user: str
) -> None:
    history = items(small_version, 1, 2)

    async def main() -> None:
        async with AsyncRetrievalClient(recording.address) as client:
            assert await client.record_events([user, user], history, times_ms=[NOW_MS, NOW_MS + 1]) == 2
            assert [event.time_ms for event in await client.get_history(user)] == [NOW_MS, NOW_MS + 1]
            found = await client.retrieve(user_id=user)
            (batch,) = await client.retrieve_batch([()], user_ids=[user])
            assert found.item_ids == batch.item_ids
            await client.forget_user(user)
            assert await client.get_history(user) == []

    asyncio.run(main())


def test_the_command_takes_a_user(recording: RunningServer, small_version: SmallVersion, user: str) -> None:
    with RetrievalClient(recording.address) as client:
        client.record_events([user], items(small_version, 4))
        expected = client.retrieve(user_id=user, num_candidates=3).item_ids
    command = [*RE4, "retrieve", "--address", recording.address, "--num-candidates", "3"]
    done = subprocess.run([*command, "--user-id", user], capture_output=True, text=True, check=True)
    assert all(item in done.stdout for item in expected)
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--user-id" in refused.stderr


def record(**columns: object) -> bytes:
    return pb.RecordEventsRequest(**columns).SerializeToString()  # type: ignore[arg-type]


IDS = pb.ItemIds(strings=["a"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (record(), "user_ids has 0 ids; it may have from 1 to 1000"),
        (record(user_ids=["u"] * 1001, items=pb.ItemIds(strings=["a"] * 1001)), "user_ids has 1001 ids"),
        (record(user_ids=["u"]), "items has 0 entries for the 1 of user_ids"),
        (record(user_ids=["u"], items=pb.ItemIds(ints=[1])), "this catalogue's ids are strings"),
        (record(user_ids=["u"], items=pb.ItemIds(strings=[""])), r"items.strings\[0\] is 0 bytes"),
        (record(user_ids=["u", ""], items=pb.ItemIds(strings=["a", "b"])), r"user_ids\[1\] is 0 bytes"),
        (record(user_ids=["é" * 129], items=IDS), r"user_ids\[0\] is 258 bytes of UTF-8; an id has from 1"),
        (record(user_ids=["u"], items=IDS, times_ms=[1, 2]), "times_ms has 2 entries for the 1"),
        (record(user_ids=["u"], items=IDS, times_ms=[-1]), r"times_ms\[0\] is -1"),
        (record(user_ids=["u"], items=IDS, times_ms=[2**60]), r"times_ms\[0\] is .* two days from now"),
        (record(user_ids=["u"], items=IDS, event_ids=["e"]), "event without a time"),
        (record(user_ids=["u"], items=IDS, event_ids=["e"], times_ms=[0]), "event without a time"),
        (
            record(user_ids=["u"], items=IDS, event_ids=["e" * 257], times_ms=[1]),
            r"event_ids\[0\] is 257 bytes",
        ),
        (b"\xff", "are not a re4.v1.RecordEventsRequest message"),
        (b"\x0a\x01\xff", r"user_ids\[0\] is not valid UTF-8"),
    ],
    ids=range(15),
)
def test_wrong_events_are_refused_in_words(recording: RunningServer, data: bytes, message: str) -> None:
    with grpc.insecure_channel(recording.address) as channel:
        code, details = raw_call(channel, "RecordEvents", data)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(message, details), details


@pytest.mark.parametrize("method", ["GetHistory", "ForgetUser"])
def test_wrong_users_are_refused_in_words(recording: RunningServer, method: str) -> None:
    too_long = pb.ForgetUserRequest(user_id="x" * 257).SerializeToString()
    with grpc.insecure_channel(recording.address) as channel:
        for data, message in ((b"", "user_id is 0 bytes"), (too_long, "user_id is 257 bytes")):
            code, details = raw_call(channel, method, data)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert message in details


def test_no_user_id_is_in_any_output(recording: RunningServer, small_version: SmallVersion) -> None:
    """After calls that succeed and calls that fail, in the log of all calls, the metrics page and Info."""
    from urllib.request import urlopen

    secret = "user-that-nobody-may-see"
    with RetrievalClient(recording.address) as client:
        client.record_events([secret], items(small_version, 1))
        client.retrieve(user_id=secret)
        client.retrieve_batch([()], user_ids=[secret])
        client.get_history(secret)
        client.forget_user(secret)
        with pytest.raises(ServerError):
            client.retrieve(user_id=secret, num_candidates=0)
        with pytest.raises(ServerError):
            client.retrieve(user_id=secret)
        with pytest.raises(ServerError):
            client.record_events([secret, ""], items(small_version, 1, 2))
        with pytest.raises(ServerError) as error:
            client.record_events([secret * 50], items(small_version, 1))
        info = str(client.info())
    with urlopen(recording.wait_for(r"metrics on (\S+)").group(1), timeout=DEADLINE_S) as answer:
        metrics = answer.read().decode()
    assert 're4_history_store_seconds_count{operation="append"}' in metrics
    assert 're4_events_total{result="new"}' in metrics
    assert "RecordEvents OK" in recording.log
    for place in (recording.log, metrics, info, str(error.value)):
        assert "nobody-may-see" not in place


@pytest.mark.transports("native", "grpcio")
def test_scopes_guard_events_and_histories(
    bundles: Path, small_version: SmallVersion, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.toml"
    scopes = {"ranking": ["retrieve"], "shop": ["retrieve", "record-events"], "support": ["read-histories"]}
    path.write_text(
        "".join(
            f'[{name}]\nsha256 = "{token_hash(name).hex()}"\nscopes = {own}\n' for name, own in scopes.items()
        )
    )
    options = ("--tokens", str(path), "--histories", str(tmp_path / "histories"))
    with RunningServer(bundles, *options) as running:

        def client(name: str) -> RetrievalClient:
            return RetrievalClient(running.address, connection=Connection(token=name))

        with client("shop") as shop, client("ranking") as ranking, client("support") as support:
            shop.record_events(["u"], items(small_version, 1))
            assert ranking.retrieve(user_id="u").item_ids
            assert [event.item_id for event in support.get_history("u")] == items(small_version, 1)
            for call in (
                lambda: ranking.record_events(["u"], ["a"]),
                lambda: ranking.forget_user("u"),
                lambda: ranking.get_history("u"),
                lambda: shop.get_history("u"),
                lambda: support.forget_user("u"),
                lambda: support.retrieve(user_id="u"),
                lambda: ranking.retrieve(user_id="u", num_reasons=1),
                lambda: ranking.retrieve(user_id="u", return_interests=True),
            ):
                with pytest.raises(ServerError, match="PERMISSION_DENIED"):
                    call()
            (one,) = ranking.retrieve_batch([()], user_ids=["u"], num_reasons=1)
            assert "PERMISSION_DENIED for user 0: num_reasons with user_id needs the scope read-h" in str(one)
            shop.forget_user("u")


def test_a_server_without_histories_says_so(bundles: Path) -> None:
    with RunningServer(bundles, "--histories", "none") as running, RetrievalClient(running.address) as client:
        assert client.info()["history_store"] == ""
        for call in (
            lambda: client.record_events(["u"], ["a"]),
            lambda: client.get_history("u"),
            lambda: client.forget_user("u"),
            lambda: client.retrieve(user_id="u"),
        ):
            with pytest.raises(ServerError, match=r"FAILED_PRECONDITION.*--histories none"):
                call()
    assert not bundles.with_name(f"{bundles.name}.histories").exists()


def test_rates_count_events(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    limits = 'scopes = ["record-events"]\nusers_per_s = 0.001\nburst = 10'
    path.write_text(f'[shop]\nsha256 = "{token_hash("shop").hex()}"\n{limits}\n')
    options = ("--tokens", str(path), "--histories", str(tmp_path / "histories"))
    with (
        RunningServer(bundles, *options) as running,
        RetrievalClient(running.address, connection=Connection(token="shop")) as client,
    ):
        assert client.record_events(["u"] * 10, ["a"] * 10) == 10
        with pytest.raises(ServerError, match="RESOURCE_EXHAUSTED"):
            client.record_events(["u"], ["a"])
