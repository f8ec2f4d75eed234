"""`re4 ingest`: lines and topics become events, each once, whatever fails in between."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from running_server import DEADLINE_S, RE4, RunningServer

from re4 import DataError, RetrievalClient, ServerError
from re4.serving.client.ingest import IncomingEvent, JsonLines, KafkaTopic, opened, parse_event, send_all

NOW_MS = int(time.time() * 1e3)


@pytest.fixture(scope="module")
def recording(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("ingested") / "histories"
    with RunningServer(bundles, "--histories", str(folder)) as running:
        yield running


class Recorded:
    """Stands for the client: fails as the test says, then keeps what it is sent."""

    def __init__(self, *failures: str) -> None:
        self.failures = list(failures)
        self.calls: list[tuple[Any, ...]] = []

    def record_events(self, user_ids: Any, item_ids: Any, *, times_ms: Any, event_ids: Any) -> int:
        if self.failures:
            raise ServerError(self.failures.pop(0))
        self.calls.append((user_ids, item_ids, times_ms, event_ids))
        return len(user_ids)


def line(**fields: object) -> str:
    return json.dumps(fields)


def test_lines_become_events() -> None:
    assert parse_event(line(user="u", item="a", time_ms=5, event_id="e"), "f:1") == ("u", "a", 5, "e")
    assert parse_event(line(user=7, item=8, time_ms=5), "f:1") == ("7", 8, 5, "f:1")
    assert parse_event(line(user="u", item="a"), "f:1", default_ms=9) == IncomingEvent("u", "a", 9, "f:1")
    assert parse_event(line(user="u", item="a"), "f:1").time_ms >= NOW_MS


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "[" * 100_000),
        line(user="secret"),
        line(user=None, item="secret"),
        line(user="secret", item=1.5),
        line(user="secret", item=True),
        line(user="secret", item="a", time_ms="now"),
        line(user="secret", item="a", time_ms=2**63),
        line(user="secret", item=2**63),
        line(user=2**63, item="secret"),
        line(user="secret\ud800", item="a"),
        line(user="secret", item="a", event_id=["b"]),
        b'{"user": "secret\xff", "item": "a"}',
    ],
    ids=range(16),
)
def test_what_is_no_event_is_named_by_its_place_and_not_quoted(text: str | bytes) -> None:
    with pytest.raises(DataError, match="f:7") as error:
        parse_event(text, "f:7")
    assert "secret" not in str(error.value)


def test_an_event_id_of_null_is_none() -> None:
    """Two events of one user and item would be one otherwise."""
    assert parse_event(line(user="u", item="a", time_ms=5, event_id=None), "f:1").event_id == "f:1"
    assert parse_event(line(user="u", item="a", time_ms=None), "f:1", default_ms=9).time_ms == 9


def test_a_line_that_is_no_text_is_named_and_those_before_it_are_sent(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(line(user="u", item="a").encode() + b'\n{"user": "\xff"}\n')
    client = Recorded()
    files = opened(str(file), None)  # type: ignore[arg-type]
    with closing(files), pytest.raises(DataError, match=r"events.jsonl:2 is no event"):
        send_all(next(files), client, 1, on_sent=lambda *_: None)  # type: ignore[arg-type]
    assert [call[0] for call in client.calls] == [("u",)]


def test_a_call_that_fails_is_sent_again_and_a_refusal_ends_it() -> None:
    lines = JsonLines("f", [line(user="u", item=str(number), time_ms=1) + "\n" for number in range(5)])
    client, delays, sent = Recorded("UNAVAILABLE from x", "RESOURCE_EXHAUSTED from x"), [], []
    send_all(lines, client, 2, on_sent=lambda *each: sent.append(each), sleep=delays.append)  # type: ignore[arg-type]
    assert [len(call[0]) for call in client.calls] == [2, 2, 1]
    assert client.calls[0] == (("u", "u"), ("0", "1"), (1, 1), ("f:1", "f:2"))
    assert delays == [0.1, 0.2]
    assert sent == [(2, 2), (2, 2), (1, 1)]
    refusing = Recorded("PERMISSION_DENIED from x")
    with pytest.raises(ServerError, match="PERMISSION_DENIED"):
        send_all(JsonLines("f", [line(user="u", item="a")]), refusing, 2, on_sent=lambda *_: None)  # type: ignore[arg-type]


def test_an_event_that_the_server_refuses_holds_up_no_other(recording: RunningServer) -> None:
    """A topic with a user id that is too long would be stuck otherwise."""
    users = ["r", "x" * 300, "r"]
    lines = [line(user=user, item=f"i{n}", time_ms=NOW_MS + n) for n, user in enumerate(users)]
    sent: list[tuple[int, int]] = []
    with RetrievalClient(recording.address) as client:
        send_all(JsonLines("f", lines), client, 10, on_sent=lambda *each: sent.append(each))
        assert sent == [(3, 2)]
        assert [event.item_id for event in client.get_history("r")] == ["i0", "i2"]
        send_all(JsonLines("f", lines[1:2]), client, 10, on_sent=lambda *each: sent.append(each))
        with pytest.raises(ServerError, match="INVALID_ARGUMENT"):
            send_all(JsonLines("f", lines[1:2] * 2), client, 10, on_sent=lambda *_: None)
        both_kinds = [line(user="both", item=item, time_ms=NOW_MS) for item in ("a", 7, "b")]
        send_all(JsonLines("g", both_kinds), client, 10, on_sent=lambda *each: sent.append(each))
        assert sent[-1] == (3, 2)
        assert [event.item_id for event in client.get_history("both")] == ["a", "b"]


def test_the_command_records_files_and_standard_input_once(recording: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(
        "".join(line(user=f"u{n % 3}", item=f"i{n}", time_ms=NOW_MS + n) + "\n" for n in range(30))
    )
    command = [*RE4, "ingest", "--address", recording.address, "--batch-events", "7"]
    for new in (30, 0):
        done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=True)
        assert f"30 events were sent, {new} of them were new" in " ".join(done.stderr.split())
    subprocess.run([*command, "-"], input=line(user="u0", item="last"), text=True, check=True)
    with RetrievalClient(recording.address) as client:
        found = [event.item_id for event in client.get_history("u0")]
    assert found == [*(f"i{n}" for n in range(0, 30, 3)), "last"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which events?"),
        (["-", "--kafka", "x:1", "--topic", "t"], "which events?"),
        (["--kafka", "x:1"], "belong together"),
        (["--kafka", "x:1", "--topic", "t", "--kafka-option", "a"], "NAME=VALUE"),
    ],
    ids=range(4),
)
def test_wrong_use_is_refused(words: list[str], message: str) -> None:
    done = subprocess.run([*RE4, "ingest", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


class Cluster:
    """librdkafka's own mock cluster, which lives as long as its producer."""

    def __init__(self) -> None:
        from confluent_kafka import Producer

        self._producer = Producer({"test.mock.num.brokers": "1", "bootstrap.servers": "ignored"})
        metadata = self._producer.list_topics("events", timeout=DEADLINE_S)
        (broker,) = metadata.brokers.values()
        self.servers = f"{broker.host}:{broker.port}"

    def send(self, *lines: str) -> None:
        for each in lines:
            self._producer.produce("events", each.encode())
        assert self._producer.flush(DEADLINE_S) == 0


def until_sent(source: KafkaTopic, client: Any, num_events: int, **options: Any) -> None:
    sent: list[int] = []
    send_all(
        source,
        client,
        50,
        on_sent=lambda num, _: sent.append(num),
        is_stopped=lambda: sum(sent) >= num_events,
        **options,
    )


def test_a_topic_is_recorded_at_least_once_and_kept_once(recording: RunningServer) -> None:
    cluster = Cluster()
    cluster.send(*(line(user="k", item=f"i{n}", time_ms=NOW_MS + n) for n in range(20)), "no event", "{}")

    def topic() -> KafkaTopic:
        # A mock broker keeps the partitions of a consumer that left until the session's timeout.
        timeouts = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}
        return KafkaTopic(cluster.servers, "events", "group", timeouts)

    class DiedError(Exception):
        pass

    first = topic()
    with RetrievalClient(recording.address) as client:
        # The first consumer dies after the events are durable and before their positions are noted.
        first.done = lambda: (_ for _ in ()).throw(DiedError)  # type: ignore[method-assign, assignment]
        with pytest.raises(DiedError):
            until_sent(first, client, 20)
        first.close()
        cluster.send(*(line(user="k", item=f"i{n}", time_ms=NOW_MS + n) for n in range(20, 25)))
        second = topic()
        until_sent(second, client, 25)
        second.close()
        found = [event.item_id for event in client.get_history("k")]
    assert found == [f"i{n}" for n in range(25)]
