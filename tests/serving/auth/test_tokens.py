"""Bearer tokens: who is refused, rates shared by all workers, changes taken up, no secret in a log."""

import asyncio
import errno
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from running_server import DEADLINE_S, RE4, RunningServer

from re4 import Connection, RetrievalClient
from re4.common.errors import RateError, SecurityError, ServerError, UnauthenticatedError
from re4.serving.auth.authenticator import Authenticator
from re4.serving.auth.rate_limit import TokenBucket
from re4.serving.auth.tokens import Scope, read_tokens, token_hash

pytestmark = pytest.mark.transports("native", "grpcio")
without_server = pytest.mark.transports()

GOOD, OLD, SLOW = "a-token-of-ranking", "an-older-token-of-ranking", "a-token-of-mail"


def entry(name: str, *tokens: str, more: str = "") -> str:
    hashes = ", ".join(f'"{token_hash(token).hex()}"' for token in tokens)
    return f"[{name}]\nsha256 = [{hashes}]\n{more}\n"


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(entry("ranking", GOOD, OLD) + entry("mail", SLOW, more="users_per_s = 0.001\nburst = 3"))
    return path


@pytest.fixture(scope="module")
def guarded(bundles: Path, tokens_file: Path, transport: str) -> Iterator[RunningServer]:
    """Two workers that require tokens, with reflection."""
    options = ("--tokens", str(tokens_file), "--num-processes", "2", "--reflection")
    with RunningServer(
        bundles, *options, "--poll-interval-s", "0.1", "--metrics-address", "127.0.0.1:0"
    ) as one:
        yield one


def client(server: RunningServer, token: str | None) -> RetrievalClient:
    return RetrievalClient(server.address, connection=Connection(token=token))


def raw(server: RunningServer, *metadata: tuple[str, str], method: str = "Info") -> grpc.StatusCode:
    with grpc.insecure_channel(server.address) as channel:
        try:
            channel.unary_unary(f"/re4.v1.Retrieval/{method}")(b"", timeout=DEADLINE_S, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("token", [GOOD, OLD])
def test_a_caller_with_a_known_token_is_served(guarded: RunningServer, token: str) -> None:
    with client(guarded, token) as caller:
        assert caller.retrieve(["item-1-é"], 3).item_ids
        assert caller.info()["settings"]["tokens"]["value"].endswith("tokens.toml")


WRONG_METADATA = (
    (),
    (("authorization", ""),),
    (("authorization", "Bearer"),),
    (("authorization", "Bearer "),),
    (("authorization", GOOD),),
    (("authorization", f"Basic {GOOD}"),),
    (("authorization", f"Bearer {GOOD} "),),
    (("authorization", f"Bearer {GOOD}x"),),
    (("authorization", f"Bearer {GOOD[:-1]}"),),
    (("authorization", f"Bearer {token_hash(GOOD).hex()}"),),
    (("authorization", "Bearer ranking"),),
    (("authorization", "Bearer " + "x" * 4000),),
    (("token", GOOD),),
    (("authorization", "Bearer wrong"), ("authorization", f"Bearer {GOOD}")),
)


# All metadata with one method, all methods with the first and the last ones: methods share the check.
@pytest.mark.parametrize(
    ("method", "metadata"),
    [
        *(("Info", metadata) for metadata in WRONG_METADATA),
        *(
            (method, WRONG_METADATA[place])
            for method in ("Retrieve", "BatchRetrieve", "Encode")
            for place in (0, -1)
        ),
    ],
    ids=range(len(WRONG_METADATA) + 6),
)
def test_no_token_and_wrong_tokens_are_refused(
    guarded: RunningServer, method: str, metadata: tuple[tuple[str, str], ...], transport: str
) -> None:
    code = raw(guarded, *metadata, method=method)
    if transport == "native" and any(value != value.strip() for _, value in metadata):
        # No field of HTTP/2 ends with a space: RFC 9113, section 8.2.1.
        assert code is grpc.StatusCode.INTERNAL
    else:
        assert code is grpc.StatusCode.UNAUTHENTICATED


def test_the_scheme_is_written_as_one_likes(guarded: RunningServer) -> None:
    assert raw(guarded, ("authorization", f"bearer {GOOD}")) is grpc.StatusCode.OK


def test_health_needs_no_token_and_reflection_does(guarded: RunningServer) -> None:
    with grpc.insecure_channel(guarded.address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=DEADLINE_S
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE_S))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = Connection(token=GOOD).metadata
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE_S, metadata=metadata)
        assert len(answer.list_services_response.service) == 3


def test_a_rate_is_one_for_all_workers_and_says_when_to_come_back(
    guarded: RunningServer, transport: str
) -> None:
    """Each client has a connection of its own, and so its own worker."""
    metadata = Connection(token=SLOW).metadata
    statuses = [raw(guarded, *metadata) for _ in range(12)]
    assert statuses.count(grpc.StatusCode.OK) == 3
    assert statuses.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 9
    with grpc.insecure_channel(guarded.address) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/re4.v1.Retrieval/Info")(b"", timeout=DEADLINE_S, metadata=metadata)
    advice = dict(error.value.trailing_metadata())["grpc-retry-pushback-ms"]
    assert 0 < int(advice) <= 1_000_000
    assert "caller mail asks for more than its 0.001 users per second" in error.value.details()
    with client(guarded, GOOD) as other:
        other.info()


@pytest.fixture(scope="module")
def limited(
    bundles: Path, tmp_path_factory: pytest.TempPathFactory, transport: str
) -> Iterator[RunningServer]:
    """One worker; callers of a burst of ten, and those of two scopes."""
    path = tmp_path_factory.mktemp("limited") / "tokens.toml"
    bursts = [
        entry(name, f"the-token-of-{name}", more="users_per_s = 0.001\nburst = 10")
        for name in ("batches", "0-users", "257-users", "20000-users")
    ]
    shop = entry("shop", SLOW, more='scopes = ["record-events"]')
    path.write_text("".join([*bursts, entry("ranking", GOOD), shop]))
    with RunningServer(bundles, "--tokens", str(path)) as running:
        yield running


def test_every_user_of_a_batch_counts(limited: RunningServer) -> None:
    with client(limited, "the-token-of-batches") as caller:
        assert len(caller.retrieve_batch([["item-1-é"]] * 9, 2)) == 9
        caller.info()
        with pytest.raises(ServerError, match="RESOURCE_EXHAUSTED"):
            caller.info()


@pytest.mark.parametrize("num_users", [0, 257, 20_000])
def test_a_batch_that_is_refused_costs_one_call(num_users: int, limited: RunningServer) -> None:
    """Ten calls fit into the burst, whatever they hold: no debt of hours, and nothing is put back."""
    empty_users = b"\x0a\x00" * num_users
    metadata = Connection(token=f"the-token-of-{num_users}-users").metadata
    with grpc.insecure_channel(limited.address) as channel:
        method = channel.unary_unary("/re4.v1.Retrieval/BatchRetrieve")
        statuses = []
        for _ in range(12):
            with pytest.raises(grpc.RpcError) as refused:
                method(empty_users, timeout=DEADLINE_S, metadata=metadata)
            statuses.append(refused.value.code())
    assert statuses == [grpc.StatusCode.INVALID_ARGUMENT] * 10 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2


@without_server
def test_nothing_is_put_back_into_a_bucket() -> None:
    rate = TokenBucket("a", users_per_s=0.001, burst=2)
    rate.charge(2)
    rate.overdraw(-1)
    with pytest.raises(RateError):
        rate.charge()


def test_changes_of_the_file_are_taken_up_and_bad_ones_are_not(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ranking", OLD))
    with RunningServer(bundles, "--tokens", str(path), "--poll-interval-s", "0.05") as running:
        assert raw(running, *Connection(token=GOOD).metadata) is grpc.StatusCode.UNAUTHENTICATED
        path.write_text(entry("ranking", GOOD))
        running.wait_for("tokens read again: ranking")
        assert raw(running, *Connection(token=GOOD).metadata) is grpc.StatusCode.OK
        assert raw(running, *Connection(token=OLD).metadata) is grpc.StatusCode.UNAUTHENTICATED
        path.write_text("[ranking")
        running.wait_for("the tokens known so far stay: ")
        assert raw(running, *Connection(token=GOOD).metadata) is grpc.StatusCode.OK
        path.unlink()
        running.wait_for("No such file")
        assert raw(running, *Connection(token=GOOD).metadata) is grpc.StatusCode.OK


def test_callers_are_named_in_metrics_and_no_token_is_in_any_output(guarded: RunningServer) -> None:
    """Whatever the tests before sent, in this log, page and Info there is neither a token nor a hash."""
    from urllib.request import urlopen

    page = guarded.wait_for(r"metrics on (\S+)").group(1)
    with client(guarded, GOOD) as caller:
        info = str(caller.info())
    with urlopen(page, timeout=DEADLINE_S) as answer:
        metrics = answer.read().decode()
    assert 're4_caller_calls_total{caller="ranking",code="OK"}' in metrics
    for place in (guarded.log, metrics, info):
        for token in (GOOD, OLD, SLOW):
            assert token not in place
            assert token_hash(token).hex() not in place


@without_server
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token, so nobody could call"),
        ("[a", "cannot be read"),
        ("a = 3", r"\[a\]: expected a table"),
        ("[a]", r"\[a\]: sha256 is missing"),
        ("[a]\nsha256 = []", "sha256 is missing"),
        ('[a]\nsha256 = "SECRET"', "sha256 is not 64 digits"),
        ('["../a"]\nsha256 = "0"', "a name has 1 to 64 letters"),
        (entry("a", GOOD, more="user_per_s = 3"), "unknown user_per_s; .* Did you mean users_per_s"),
        (entry("a", GOOD, more="users_per_s = 0"), "users_per_s is 0; it must be a number above 0"),
        (entry("a", GOOD, more="users_per_s = true"), "users_per_s is True"),
        (entry("a", GOOD, more="users_per_s = nan"), "users_per_s is nan"),
        (entry("a", GOOD, more="users_per_s = 1e400"), "users_per_s is inf; it must be a number above 0"),
        (entry("a", GOOD, more=f"users_per_s = {10**400}"), "users_per_s is too large; it must be"),
        (entry("a", GOOD, more=f"users_per_s = 0x{'f' * 9000}"), "users_per_s is too large; it must be"),
        (
            entry("a", GOOD, more="users_per_s = 1\nburst = 1e400"),
            "burst is inf; it must be a number above 0",
        ),
        (entry("a", GOOD, more=f"users_per_s = {'9' * 5000}"), "cannot be read: Exceeds the limit"),
        (entry("a", GOOD, more=f"burst = {'[' * 5000}"), "cannot be read: maximum recursion depth"),
        (entry("a", GOOD, more="burst = 2"), "burst without users_per_s"),
        (
            entry("a", GOOD, more="scopes = []"),
            r"scopes is \[\]; it must be a list of some of retrieve, record",
        ),
        (entry("a", GOOD, more='scopes = "retrieve"'), "scopes is 'retrieve'; it must be a list"),
        (entry("a", GOOD, more='scopes = ["retrieve", "all"]'), "it must be a list of some of retrieve"),
        (entry("a", GOOD, more="scopes = [3]"), "it must be a list of some of retrieve"),
        (entry("a", GOOD) + entry("b", GOOD), "a and b have the same token"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_at_start(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(text)
    with pytest.raises(SecurityError, match=message) as error:
        read_tokens(tmp_path / "tokens.toml")
    assert "SECRET" not in str(error.value)
    assert GOOD not in str(error.value)


def test_a_server_without_a_usable_file_does_not_start(bundles: Path, tmp_path: Path) -> None:
    command = [*RE4, "serve", "--bundles", str(bundles), "--address", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--tokens", str(tmp_path / "absent")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "absent cannot be read" in " ".join(done.stderr.split())


@without_server
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b"a = " + b"[" * 5000,
        b"a = " + b"9" * 5000,
        b"\xff",
        b"[ranking]\nusers_per_s = 1e400",
    ],
    ids=["open", "deep", "many digits", "no text", "infinite"],
)
def test_no_file_ends_the_following_so_that_revoked_tokens_stay_valid(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ranking", OLD))
    authenticator = Authenticator(path, None)
    old = Connection(token=OLD).metadata
    path.write_bytes(content)
    asyncio.run(authenticator.poll())
    assert authenticator.identify(old).name == "ranking"
    path.write_text(entry("ranking", GOOD))
    asyncio.run(authenticator.poll())
    with pytest.raises(UnauthenticatedError):
        authenticator.identify(old)


@without_server
def test_a_pipe_in_place_of_the_file_blocks_nothing(tmp_path: Path) -> None:
    path, pipe = tmp_path / "tokens.toml", tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SecurityError, match=r"cannot be read: .*Not a regular file"):
        Authenticator(pipe, None)
    path.write_text(entry("ranking", OLD))
    authenticator = Authenticator(path, None)
    pipe.replace(path)
    asyncio.run(authenticator.poll())
    assert authenticator.identify(Connection(token=OLD).metadata).name == "ranking"
    (tmp_path / "next").write_text(entry("ranking", GOOD))
    (tmp_path / "next").replace(path)
    asyncio.run(authenticator.poll())
    assert authenticator.identify(Connection(token=GOOD).metadata).name == "ranking"


@without_server
def test_an_error_that_nobody_expected_does_not_end_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ranking", OLD))
    authenticator = Authenticator(path, None)
    path.write_text(entry("ranking", GOOD))
    with monkeypatch.context() as broken:
        broken.setattr("re4.serving.auth.authenticator.parse_tokens", lambda *_: {}["SECRET"])
        asyncio.run(authenticator.poll())
    assert "the tokens known so far stay: the read failed with KeyError" in caplog.text
    assert "SECRET" not in caplog.text
    asyncio.run(authenticator.poll())
    assert authenticator.identify(Connection(token=GOOD).metadata).name == "ranking"


@without_server
@pytest.mark.parametrize("content", [b"[ranking", None], ids=["bad", "absent"])
def test_a_worker_that_starts_while_the_file_is_bad_admits_the_last_good_callers(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, shared = tmp_path / "tokens.toml", tmp_path / "shared"
    shared.mkdir()
    path.write_text(entry("ranking", OLD))
    first = Authenticator(path, shared)
    (tmp_path / "next").write_text(entry("ranking", GOOD))
    (tmp_path / "next").replace(path)
    asyncio.run(first.poll())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    second = Authenticator(path, shared)
    assert "the tokens known so far stay: tokens file" in caplog.text
    assert second.identify(Connection(token=GOOD).metadata).name == "ranking"
    with pytest.raises(UnauthenticatedError):
        second.identify(Connection(token=OLD).metadata)
    path.write_text(entry("mail", SLOW))
    asyncio.run(second.poll())
    assert second.identify(Connection(token=SLOW).metadata).name == "mail"
    with pytest.raises(UnauthenticatedError):
        second.identify(Connection(token=GOOD).metadata)
    assert sorted(each.name for each in shared.iterdir()) == ["+tokens"]


@without_server
def test_a_copy_is_not_of_a_file_that_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has read the newer file by then."""
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ranking", OLD))

    def slow_read(path: Path) -> bytes:
        content = path.read_bytes()
        (tmp_path / "next").write_text(entry("ranking", GOOD))
        (tmp_path / "next").replace(path)
        return content

    monkeypatch.setattr("re4.serving.auth.authenticator.read_token_file", slow_read)
    Authenticator(path, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["tokens.toml"]


@without_server
def test_bytes_that_are_no_text_are_no_token(tokens_file: Path) -> None:
    gate = Authenticator(tokens_file, None)
    with pytest.raises(UnauthenticatedError):
        gate.admit([("authorization", b"Bearer \xff")], Scope.RETRIEVE, "Retrieve")


def test_a_new_token_fits_the_entry_that_comes_with_it(tmp_path: Path) -> None:
    made = subprocess.run(
        [*RE4, "token", "new.caller", "--users-per-s", "5"], capture_output=True, text=True, check=True
    )
    (tmp_path / "tokens.toml").write_text(made.stderr)
    (tmp_path / "token").write_text(made.stdout)
    callers = read_tokens(tmp_path / "tokens.toml")
    token = Connection.read(token_file=tmp_path / "token").token
    assert token is not None
    assert callers[token_hash(token)].name == "new.caller"
    assert token not in made.stderr
    assert token not in repr(Connection(token=token))


@without_server
@pytest.mark.parametrize("text", ["", " \n", "two words", "ünicode"])
def test_a_file_that_holds_no_token_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(SecurityError, match="does not hold one token"):
        Connection.read(token_file=tmp_path / "token")
    monkeypatch.setenv("RE4_TOKEN", text)
    with pytest.raises(SecurityError, match="RE4_TOKEN does not hold one token"):
        Connection.read()


@without_server
@given(
    steps_s=st.lists(st.floats(0, 2), max_size=60),
    users_per_s=st.floats(0.1, 50),
    burst=st.floats(1, 20),
)
def test_no_span_of_time_lets_more_in_than_burst_and_rate(
    steps_s: list[float], users_per_s: float, burst: float
) -> None:
    now = 1000.0
    rate = TokenBucket("a", users_per_s=users_per_s, burst=burst, clock_s=lambda: now)
    let_in = []
    for step_s in steps_s:
        now += step_s
        try:
            rate.charge()
            let_in.append(now)
        except RateError as error:
            now += error.retry_after_ms / 1e3
            rate.charge()  # the advice is good
            let_in.append(now)
    for first in range(len(let_in)):
        for last in range(first, len(let_in)):
            span_s = let_in[last] - let_in[first]
            assert last - first + 1 <= burst + users_per_s * span_s + 1e-3
    assert all(earlier <= later for earlier, later in pairwise(let_in))


def _charge(folder: Path, results: "multiprocessing.Queue[int]") -> None:
    rate = TokenBucket("shared", users_per_s=1e-6, burst=1000, folder=folder)
    num_let_in = 0
    for _ in range(1000):
        try:
            rate.charge()
            num_let_in += 1
        except RateError:
            break
    results.put(num_let_in)


@without_server
def test_a_full_disk_keeps_no_token_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first charge of a cell without disk space would be the end of the worker, by SIGBUS."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", fail)
    rate = TokenBucket("mail", users_per_s=1, burst=2, folder=tmp_path)
    assert "the rate of mail is limited by each worker alone" in caplog.text
    rate.charge(2)
    with pytest.raises(RateError):
        rate.charge()


@without_server
def test_a_caller_that_is_gone_leaves_no_file(tmp_path: Path) -> None:
    path, folder = tmp_path / "tokens.toml", tmp_path / "cells"
    folder.mkdir()
    limit = "users_per_s = 1"
    path.write_text(entry("mail", SLOW, more=limit) + entry("ranking", GOOD, more=limit))
    authenticator = Authenticator(path, folder)
    files = {cell.name for cell in folder.iterdir()}
    assert files >= {"mail", "ranking"}
    path.write_text(entry("ranking", OLD, more=limit))
    asyncio.run(authenticator.poll())
    assert {cell.name for cell in folder.iterdir()} == files - {"mail"}


@without_server
def test_processes_share_a_bucket(tmp_path: Path) -> None:
    """Without a lock a charge may be lost where two meet within a microsecond; the rate hardly changes."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_charge, args=(tmp_path, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    total = sum(results.get(timeout=DEADLINE_S) for _ in workers)
    for worker in workers:
        worker.join()
    assert 1000 <= total < 1900


def test_a_token_may_retrieve_and_nothing_else_unless_its_entry_names_scopes(
    limited: RunningServer, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ranking", GOOD) + entry("shop", SLOW, more='scopes = ["record-events"]'))
    callers = read_tokens(path)
    assert callers[token_hash(GOOD)].scopes == {Scope.RETRIEVE}
    assert callers[token_hash(SLOW)].scopes == {Scope.RECORD_EVENTS}
    with client(limited, GOOD) as caller:
        assert caller.retrieve(["item-1-é"], 3).item_ids
    with client(limited, SLOW) as caller, pytest.raises(ServerError, match="PERMISSION_DENIED") as denied:
        caller.retrieve(["item-1-é"], 3)
    assert "Retrieve needs the scope retrieve; the token of shop has record-events" in str(denied.value)


def test_scopes_of_a_new_token(tmp_path: Path) -> None:
    options = ("--scope", "record-events", "--scope", "edit-items")
    made = subprocess.run([*RE4, "token", "shop", *options], capture_output=True, text=True, check=True)
    (tmp_path / "tokens.toml").write_text(made.stderr)
    (caller,) = read_tokens(tmp_path / "tokens.toml").values()
    assert caller.scopes == {Scope.RECORD_EVENTS, Scope.EDIT_ITEMS}
