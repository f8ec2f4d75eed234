"""JSON over HTTP: the answers, statuses, limits and tokens of gRPC."""

import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from certificates import Authority
from google.protobuf import json_format
from running_server import DEADLINE_S, PAUSE_S, RunningServer, open_files, serve_and_fail
from small_bundles import SmallVersion

from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.auth.tokens import token_hash
from re4.serving.http.json_mapping import format_error, http_status
from re4.serving.http.openapi import openapi_document
from re4.serving.protocol.status_codes import StatusCode
from re4.serving.transports.transport import RETRY_PUSHBACK, StatusError

JSON = {"Content-Type": "application/json"}
TOKEN, SLOW_TOKEN = "a" * 43, "b" * 43


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    content: Any


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers; calls need a token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    fast, slow = (token_hash(token).hex() for token in (TOKEN, SLOW_TOKEN))
    tokens.write_text(
        f'[shop]\nsha256 = "{fast}"\n[slow]\nsha256 = "{slow}"\nusers_per_s = 0.01\nburst = 1\n'
    )
    options = ("--http-address", "127.0.0.1:0", "--tokens", str(tokens), "--message-timeout-s", "1.5")
    with RunningServer(bundles, *options, "--num-processes", "2") as running:
        yield running


@pytest.fixture(scope="module")
def http_address(server: RunningServer) -> tuple[str, int]:
    host, port = server.wait_for(r"JSON over HTTP on (\S+):(\d+)").groups()
    return host, int(port)


@pytest.fixture
def connection(http_address: tuple[str, int]) -> Iterator[http.client.HTTPConnection]:
    opened = http.client.HTTPConnection(*http_address, timeout=DEADLINE_S)
    yield opened
    opened.close()


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    content: Any = None,
    *,
    token: str | None = TOKEN,
    verb: str | None = None,
    **headers: str,
) -> Response:
    body = None if content is None else content if isinstance(content, bytes) else json.dumps(content)
    sent = {} if content is None else dict(JSON)
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(verb or ("GET" if content is None else "POST"), path, body, sent)
    found = connection.getresponse()
    data = found.read()
    assert found.headers["content-type"] == "application/json"
    return Response(
        found.status, {name.lower(): value for name, value in found.headers.items()}, json.loads(data)
    )


def test_replies_are_those_of_grpc(
    connection: http.client.HTTPConnection, server: RunningServer, small_version: SmallVersion
) -> None:
    ids = list(small_version.ids[3:9])
    request = pb.RetrieveRequest(
        history=pb.ItemIds(strings=ids), num_candidates=7, num_reasons=2, return_interests=True
    )
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/re4.v1.Retrieval/Retrieve", None, pb.RetrieveReply.FromString)
        expected = call(request.SerializeToString(), metadata=[("authorization", f"Bearer {TOKEN}")])
    found = ask(
        connection,
        "/v1/retrieve",
        {"history": {"strings": ids}, "numCandidates": 7, "num_reasons": 2, "returnInterests": True},
    )
    assert found.status == 200
    reply = json_format.ParseDict(found.content, pb.RetrieveReply())
    for each in (reply, expected):
        each.ClearField("stage_times")
    assert reply == expected
    batch = ask(
        connection, "/v1/batch-retrieve", {"users": [{"history": {"strings": ids}, "numCandidates": 7}] * 2}
    )
    assert batch.content["items"]["strings"] == found.content["items"]["strings"] * 2
    interests = ask(connection, "/v1/encode", {"history": {"strings": ids}}).content["interests"]
    assert interests == found.content["interests"]
    assert ask(connection, "/v1/info").content["itemIdKind"] == "string"
    assert ask(connection, "/v1/health", token=None).content == {"status": "SERVING"}


@pytest.mark.parametrize(
    ("path", "content", "more", "status", "code", "words"),
    [
        ("/v1/retrieve", {"numCandidates": 0}, {}, 400, 3, "num_candidates is 0"),
        ("/v1/retrieve", {"candidates": 7}, {}, 400, 3, "candidates"),
        ("/v1/retrieve", b"[]", {}, 400, 3, "re4.v1.RetrieveRequest in JSON"),
        ("/v1/retrieve", b"\xff", {}, 400, 3, "not valid UTF-8"),
        ("/v1/retrieve", b'{"history":' * 90_000, {}, 400, 3, "in JSON|nested"),
        ("/v1/retrieve", b'{"numCandidates": ' + b"9" * 5000 + b"}", {}, 400, 3, "in JSON"),
        ("/v1/retrieve", b'{"diversity": 1e999}', {}, 400, 3, "in JSON"),
        ("/v1/retrieve", b" " * (2 << 20), {}, 413, 8, "larger than max"),
        ("/v1/retrieve", {}, {"token": None}, 401, 16, "token"),
        ("/v1/get-history", {"userId": "u"}, {}, 403, 7, "read-histories"),
        ("/v1/retrieve", {}, {"verb": "GET"}, 405, 3, "takes POST"),
        ("/v1/info", {}, {}, 405, 3, "takes GET"),
        ("/v1/nothing", None, {}, 404, 5, "openapi.json"),
        ("/v1/retrieve", {}, {"Content_Type": "text/plain"}, 415, 3, "application/json"),
    ],
)
def test_errors_have_the_statuses_of_transcoding(
    path: str, content: Any, more: dict[str, Any], status: int, code: int, words: str,
    connection: http.client.HTTPConnection,
) -> None:  # fmt: skip
    found = ask(connection, path, content, **more)
    assert (found.status, found.content["code"]) == (status, code)
    assert re.search(words, found.content["message"])


def test_rates_hold_and_advise_when_to_try_again(
    connection: http.client.HTTPConnection, small_version: SmallVersion
) -> None:
    question = {"history": {"strings": list(small_version.ids[:2])}, "numCandidates": 1}
    answers = [ask(connection, "/v1/retrieve", question, token=SLOW_TOKEN) for _ in range(5)]
    refused = next(answer for answer in answers if answer.status != 200)
    assert (refused.status, refused.content["code"]) == (429, 8)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.content["details"][0]["retryDelay"].endswith("s")


def test_a_deadline_that_has_passed_is_a_timeout(connection: http.client.HTTPConnection) -> None:
    question = {"numCandidates": 1}
    late = ask(connection, "/v1/retrieve", question, x_server_timeout="1e-9")
    assert (late.status, late.content["code"]) == (504, 4)
    for seconds in ("x", "-1", "0", "inf", "nan"):
        wrong = ask(connection, "/v1/retrieve", question, x_server_timeout=seconds)
        assert (wrong.status, wrong.content["code"]) == (400, 3)


def test_generated_requests_get_answers_that_the_document_describes(
    http_address: tuple[str, int], tmp_path: Path
) -> None:
    host, port = http_address
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = ["run", f"http://{host}:{port}/v1/openapi.json", "--checks", checks, "--max-examples", "4"]
    words += [
        "--phases",
        "coverage,fuzzing",
        "-H",
        f"Authorization: Bearer {TOKEN}",
        "-H",
        "X-Server-Timeout: 60",
    ]
    words += ["--seed", "1", "--no-color", "--generation-database", "none"]
    command = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [command, *words], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout


def test_slow_and_silent_connections_end(
    http_address: tuple[str, int], connection: http.client.HTTPConnection
) -> None:
    half = b"POST /v1/retrieve HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    half += f"Authorization: Bearer {TOKEN}\r\n".encode()
    openings = {
        "nothing": b"",
        "half of the headers": half,
        "half of the body": half + b"Content-Length: 90\r\n\r\n{",
        "endless headers": half + b"a: " + b"x" * 20_000,
        "no HTTP": b"\x16\x03\x01\x00\xa5\x01\x00",
    }
    sockets = {name: socket.create_connection(http_address) for name in openings}
    for name, opening in openings.items():
        sockets[name].sendall(opening)
    assert ask(connection, "/v1/info").status == 200
    ends = {}
    for name, opened in sockets.items():
        opened.settimeout(DEADLINE_S)
        data = b""
        while part := opened.recv(65_536):
            data += part
        ends[name] = data.partition(b"\r\n")[0]
        opened.close()
    assert ends["nothing"] == ends["half of the headers"] == b""
    assert b"504" in ends["half of the body"]
    assert b"400" in ends["endless headers"]
    assert b"400" in ends["no HTTP"]


def test_callers_that_leave_are_forgotten(
    server: RunningServer, http_address: tuple[str, int], connection: http.client.HTTPConnection
) -> None:
    assert ask(connection, "/v1/info").status == 200
    num_before = num_sockets(server)
    body = json.dumps({"users": [{"numCandidates": 1, "history": {"strings": ["x"] * 9}}] * 200}).encode()
    request = b"POST /v1/batch-retrieve HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    request += f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def leave() -> None:
        for _ in range(20):
            with socket.create_connection(http_address) as opened:
                opened.sendall(request)

    threads = [threading.Thread(target=leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask(connection, "/v1/info").status == 200
    assert "Traceback" not in server.log
    ends_s = time.monotonic() + DEADLINE_S
    while num_sockets(server) > num_before and time.monotonic() < ends_s:
        time.sleep(PAUSE_S)
    assert num_sockets(server) <= num_before


def num_sockets(server: RunningServer) -> int:
    return sum(name.startswith("socket:") for pid in server.workers() for name in open_files(pid))


def test_the_document_describes_every_path(connection: http.client.HTTPConnection) -> None:
    document = ask(connection, "/v1/openapi.json", token=None).content
    assert {"/v1/retrieve", "/v1/batch-retrieve", "/v1/encode", "/v1/info", "/v1/health"} <= set(
        document["paths"]
    )
    retrieve = document["components"]["schemas"]["RetrieveRequest"]["properties"]
    assert retrieve.keys() == {field.json_name for field in pb.RetrieveRequest.DESCRIPTOR.fields}
    assert "oldest first" in retrieve["history"]["description"]
    known = set(document["components"]["schemas"])
    references = {part.partition('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= known
    assert len(openapi_document([])) > 100


def test_every_status_has_one_of_http() -> None:
    assert {http_status(code) for code in StatusCode} == {
        200, 400, 401, 403, 404, 409, 429, 499, 500, 501, 503, 504,
    }  # fmt: skip
    body, headers = format_error(
        StatusError(StatusCode.RESOURCE_EXHAUSTED, "full", ((RETRY_PUSHBACK, "1500"), ("x-request-id", "7")))
    )
    assert headers == [("retry-after", "2"), ("x-request-id", "7")]
    assert json.loads(body)["details"][0]["retryDelay"] == "1.5s"


def test_tls_follows_renewed_certificates_and_strangers_are_refused(bundles: Path, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    pair, mine = authority.issue(), authority.issue("me")
    tls = ("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key))
    options = (*tls, "--tls-client-ca", str(authority.path), "--http-address", "127.0.0.1:0")

    def context(trusted: Authority, *, has_certificate: bool = True) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(trusted.path))
        if has_certificate:
            made.load_cert_chain(mine.certificate, mine.key)
        return made

    def serial(port: int) -> str:
        opened = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=DEADLINE_S, context=context(authority)
        )
        assert ask(opened, "/v1/health").content == {"status": "SERVING"}
        found = opened.sock.getpeercert()["serialNumber"]
        opened.close()
        return str(found)

    with RunningServer(bundles, *options, "--poll-interval-s", "0.05") as running:
        port = int(running.wait_for(r"JSON over HTTP on \S+:(\d+)").group(1))
        first = serial(port)
        for wrong in (context(other), context(authority, has_certificate=False)):
            refused = http.client.HTTPSConnection("127.0.0.1", port, timeout=DEADLINE_S, context=wrong)
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
                ask(refused, "/v1/health")
            refused.close()
        pair.replace(authority.issue())
        ends_s = time.monotonic() + DEADLINE_S
        while serial(port) == first and time.monotonic() < ends_s:
            time.sleep(PAUSE_S)
        assert serial(port) != first


def test_an_open_address_needs_tls(bundles: Path) -> None:
    code, words = serve_and_fail(bundles, "--http-address", "0.0.0.0:0")
    assert code == 2
    assert "http_address" in words or "--http-address" in words
    assert "--insecure" in words
