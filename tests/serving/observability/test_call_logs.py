"""Request ids and the access log: a line names its call; a flood of calls makes no flood of lines."""

import json
import logging
from pathlib import Path

import grpc
import pytest
from grpc._cython.cygrpc import ExecuteBatchError
from hypothesis import given
from hypothesis import strategies as st
from running_server import DEADLINE_S, RunningServer

from re4.serving.auth.tokens import token_hash
from re4.serving.observability.access_log import AccessLog
from re4.serving.observability.call_context import CURRENT_CALL, Call
from re4.serving.observability.logs import formatter, is_loggable
from re4.serving.settings import LogFormat

pytestmark = pytest.mark.transports("native", "grpcio")

TOKEN = "a-token-that-nobody-logs"


def ask(address: str, *metadata: tuple[str, str], data: bytes = b"") -> grpc.RpcError | None:
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/re4.v1.Retrieval/Info")(data, timeout=DEADLINE_S, metadata=metadata)
        except grpc.RpcError as error:
            return error
    return None


def request_id(error: grpc.RpcError | None) -> str:
    assert error is not None
    return dict(error.trailing_metadata())["x-request-id"]


def test_json_lines_of_a_server_that_logs_all_calls(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(f'[ranking]\nsha256 = "{token_hash(TOKEN).hex()}"\n')
    options = ("--log-format", "json", "--access-log", "all", "--tokens", str(path))
    with RunningServer(bundles, *options, "--num-processes", "1") as running:
        good = ("authorization", f"Bearer {TOKEN}")
        assert ask(running.address, good, ("x-request-id", "abc/1")) is None
        assert request_id(ask(running.address, good, ("x-request-id", "abc/2"), data=b"\xff")) == "abc/2"
        made = request_id(ask(running.address, ("authorization", "Bearer wrong-but-secret")))
        running.wait_for(made)
    lines = [json.loads(line) for line in running.log.splitlines()]
    assert {"time", "level", "process", "message"} <= set.intersection(*(set(line) for line in lines))
    calls = [line for line in lines if "code" in line]
    assert [(line["method"], line["code"], line["request_id"], line.get("caller")) for line in calls] == [
        ("Info", "OK", "abc/1", "ranking"),
        ("Info", "INVALID_ARGUMENT", "abc/2", "ranking"),
        ("Info", "UNAUTHENTICATED", made, None),
    ]
    assert all(line["ms"] > 0 for line in calls)
    assert TOKEN not in running.log
    assert "wrong-but-secret" not in running.log


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ExecuteBatchError('Failed "execute_batch": (<SendStatusFromServerOperation>,)'), False),
        (ExecuteBatchError("Failed grpc_call_start_batch: 8 with grpc_call_error value: 'X'"), True),
        (RuntimeError("Failed"), True),
        (None, True),
    ],
)
def test_a_caller_who_left_as_the_reply_was_sent_makes_no_line(
    error: Exception | None, expected: bool
) -> None:
    exc_info = None if error is None else (type(error), error, None)
    record = logging.LogRecord("grpc", logging.ERROR, "", 0, "raised in core", None, exc_info)
    assert is_loggable(record) is expected


def test_text_lines_name_failed_calls_alone(bundles: Path) -> None:
    with RunningServer(bundles, "--num-processes", "1") as running:
        assert ask(running.address, ("x-request-id", "fine")) is None
        assert request_id(ask(running.address, ("x-request-id", "wrong"), data=b"\xff")) == "wrong"
        assert running.wait_for(r"INFO worker 1: Info INVALID_ARGUMENT [\d.]+ ms: .* \(request wrong\)")
        assert "(request fine)" not in running.log


@pytest.mark.parametrize("given_id", ["", "x" * 129, "two words", 'quo"te', "{}"])
def test_an_id_that_is_long_or_odd_is_replaced(server: RunningServer, given_id: str) -> None:
    made = request_id(ask(server.address, ("x-request-id", given_id), data=b"\xff"))
    assert made != given_id
    assert len(made) == 16


def test_bytes_are_no_id() -> None:
    assert len(Call("Info", lambda: [("x-request-id", b"\xff")]).request_id) == 16


@given(st.text())
def test_what_a_caller_sent_makes_one_line_in_either_form(text: str) -> None:
    record = logging.LogRecord("serving", logging.INFO, "", 0, "it said %s", (text,), None)
    token = CURRENT_CALL.set(Call("Info"))
    try:
        as_text = formatter("worker 1", LogFormat.TEXT).format(record)
        as_json = formatter("worker 1", LogFormat.JSON).format(record)
    finally:
        CURRENT_CALL.reset(token)
    assert len(as_text.splitlines()) == 1
    assert json.loads(as_json)["message"] == f"it said {text}"


def test_a_defect_is_logged_with_its_stack_and_the_call() -> None:
    token = CURRENT_CALL.set(Call("Retrieve", lambda: [("x-request-id", "r-1")]))
    try:
        try:
            raise ZeroDivisionError("inside")
        except ZeroDivisionError as error:
            exc_info = (type(error), error, error.__traceback__)
        record = logging.LogRecord("serving", logging.ERROR, "", 0, "failed", (), exc_info)
        line = json.loads(formatter("worker 1", LogFormat.JSON).format(record))
    finally:
        CURRENT_CALL.reset(token)
    assert line["request_id"] == "r-1"
    assert "ZeroDivisionError: inside" in line["exception"]


@given(steps_s=st.lists(st.floats(0, 1), max_size=80), lines_per_s=st.floats(1, 10))
def test_every_call_is_written_or_counted_and_lines_keep_to_their_budget(
    steps_s: list[float], lines_per_s: float
) -> None:
    now = 0.0
    written: list[logging.LogRecord] = []
    log = AccessLog(errors_only=False, lines_per_s=lines_per_s, clock_s=lambda: now)
    handler = logging.Handler()
    handler.emit = written.append
    logger = logging.getLogger("re4.serving.observability.access_log")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        for step_s in steps_s:
            now += step_s
            log.ended(Call("Info"), "OK", "", 0.001)
        now += 2 / lines_per_s
        log.ended(Call("Info"), "OK", "", 0.001)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    num_left_out = sum(record.fields.get("num_left_out", 0) for record in written)
    assert len(written) + num_left_out == len(steps_s) + 1
    assert len(written) <= lines_per_s * (1 + now) + 1e-6
