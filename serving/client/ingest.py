"""Streams of events to a server: JSON lines and Kafka, at least once, in batches.

A position of a stream is noted as done only after its events are durable. Every event has an id and a time,
so that events that are sent again after a failure are recorded once.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

from re4.common.errors import DataError, RequestError, ServerError
from re4.serving.client.client import RetrievalClient

_RETRIED: Final = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")
"""Statuses after which the same call is sent again."""
_LONGEST_DELAY_S: Final = 5.0

_log = logging.getLogger(__name__)


class IncomingEvent(NamedTuple):
    """An event of a stream."""

    user_id: str
    item_id: str | int
    time_ms: int
    event_id: str


class EventSource(Protocol):
    """A stream of events."""

    def batches(self, max_events: int) -> Iterator[list[IncomingEvent]]:
        """Yield events as they come, at most so many at a time; an empty list where none came in a while."""
        ...

    def done(self) -> None:
        """Note that the events yielded so far are durable."""
        ...


class JsonLines:
    """Lines `{"user": …, "item": …, "time_ms": …, "event_id": …}`; the last two may be missing."""

    def __init__(self, name: str, lines: Iterable[str | bytes]) -> None:
        """Read nothing yet.

        Args:
            name: Of the file, for messages, and for the ids of events without one: name and line number.
            lines: The lines.
        """
        self._name = name
        self._lines = lines

    def batches(self, max_events: int) -> Iterator[list[IncomingEvent]]:
        """Yield the events of the lines.

        Raises:
            DataError: a line that is no event, or that cannot be read; the message names the line and does
                not quote it.
        """
        batch: list[IncomingEvent] = []
        for number, line in self._numbered():
            if line.strip():
                batch.append(parse_event(line, f"{self._name}:{number}"))
            if len(batch) == max_events:
                yield batch
                batch = []
        yield batch

    def done(self) -> None:
        """Do nothing: lines have no position to note."""

    def _numbered(self) -> Iterator[tuple[int, str | bytes]]:
        try:
            yield from enumerate(self._lines, start=1)
        except OSError as error:
            raise DataError(f"{self._name} cannot be read: {error}") from None


class KafkaTopic:
    """A topic of Kafka. The group's offsets move only when events are durable: at least once."""

    def __init__(self, servers: str, topic: str, group: str, options: dict[str, str]) -> None:
        """Join the group.

        Args:
            servers: HOST:PORT,…
            topic: Name of the topic.
            group: Name of the consumer group.
            options: Further options of librdkafka, such as those of TLS.

        Raises:
            DataError: an option that librdkafka does not accept.
        """
        from confluent_kafka import Consumer, KafkaException

        fixed = {"enable.auto.commit": False, "auto.offset.reset": "earliest"}
        try:
            self._consumer = Consumer({"bootstrap.servers": servers, "group.id": group, **options, **fixed})
        except (KafkaException, ValueError, TypeError) as error:
            raise DataError(f"Kafka refuses the options: {error}") from None
        self._consumer.subscribe([topic])

    def batches(self, max_events: int) -> Iterator[list[IncomingEvent]]:
        """Yield the events of new messages, which are JSON as lines are; a wrong message is left out.

        Raises:
            DataError: the topic cannot be read.
        """
        from confluent_kafka import KafkaError

        while True:
            batch: list[IncomingEvent] = []
            for message in self._consumer.consume(max_events, timeout=0.2):
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        continue
                    if error.fatal() or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise DataError(f"the topic cannot be read: {error.str()}")
                    _log.warning("Kafka: %s", error.str())
                    continue
                place = f"{message.topic()}:{message.partition()}:{message.offset()}"
                try:
                    kind, sent_ms = message.timestamp()
                    batch.append(
                        parse_event(message.value() or b"", place, default_ms=sent_ms if kind else None)
                    )
                except DataError as wrong:  # it would be wrong at every further try
                    _log.error("left out: %s", wrong)
            yield batch

    def done(self) -> None:
        """Commit the offsets of all messages that were read."""
        from confluent_kafka import KafkaError, KafkaException

        try:
            self._consumer.commit(asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._NO_OFFSET:  # nothing was read since the last commit
                _log.warning("Kafka: offsets are not committed, events will come again: %s", error)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()


def parse_event(line: str | bytes, place: str, *, default_ms: int | None = None) -> IncomingEvent:
    """Return the event of a JSON object.

    Args:
        line: The object.
        place: Where it stands; the event's id where it has none.
        default_ms: Its time where it has none; None for the present time.

    Raises:
        DataError: it is no event. The message names the place and does not quote it.
    """
    try:
        fields = json.loads(line)
        user, item = fields["user"], fields["item"]
        time_ms, event_id = fields.get("time_ms"), fields.get("event_id")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f'{place} is no event; an event is {{"user": "u-7", "item": "SKU-1", "time_ms": 1764403200000, '
            '"event_id": "order-9"}, where the last two may be missing'
        ) from None
    if time_ms is None:
        time_ms = int(time.time() * 1e3) if default_ms is None else default_ms
    if not _is_integer(time_ms):
        raise DataError(f"{place}: time_ms must be an integer, milliseconds since 1970")
    if event_id is None:
        event_id = place
    for name, value in (("user", user), ("item", item), ("event_id", event_id)):
        if not (_is_integer(value) or _is_text(value)):
            raise DataError(f"{place}: {name} must be a text or an integer of 64 bits")
    return IncomingEvent(str(user), item, time_ms, str(event_id))


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_text(value: Any) -> bool:
    """Return whether the value is a text without a lone surrogate, which no message can carry."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def send_all(
    source: EventSource,
    client: RetrievalClient,
    max_events: int,
    *,
    on_sent: Callable[[int, int], Any],
    is_stopped: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Send the events of a source until it ends.

    Args:
        source: The stream.
        client: Of the server.
        max_events: Events of one call.
        on_sent: Called with the number of events of a call, and how many of them were new.
        is_stopped: Whether to stop before the next batch.
        sleep: Waits so many seconds between two tries.

    Raises:
        ServerError: the server refuses the events, and would refuse them again.
    """
    for batch in source.batches(max_events):
        if batch:
            on_sent(len(batch), _send(batch, client, sleep))
            source.done()
        if is_stopped():
            return


def _send(batch: list[IncomingEvent], client: RetrievalClient, sleep: Callable[[float], None]) -> int:
    """Send a batch until it is durable, and return how many events were new.

    A single event that the server refuses is left out; it must not hold up those behind it. A refusal of
    all events of a batch is an error.
    """
    try:
        return _retried(batch, client, sleep)
    except (ServerError, RequestError) as error:
        if not _is_refusal(error):
            raise
        refusal = error
    if len(batch) == 1:
        _log.error("one event is left out: %s", refusal)
        return 0
    num_new, num_refused = 0, 0
    for event in batch:
        try:
            num_new += _retried([event], client, sleep)
        except (ServerError, RequestError) as error:
            if not _is_refusal(error):
                raise
            num_refused += 1
            _log.error("one event is left out: %s", error)
    if num_refused == len(batch):
        raise refusal
    return num_new


def _is_refusal(error: ServerError | RequestError) -> bool:
    """Return whether the events would be refused again. A call has items of one kind: texts or integers."""
    return isinstance(error, RequestError) or str(error).startswith("INVALID_ARGUMENT")


def _retried(batch: list[IncomingEvent], client: RetrievalClient, sleep: Callable[[float], None]) -> int:
    """Send a batch again until the server records or refuses it, and return how many events were new."""
    user_ids, item_ids, times_ms, event_ids = zip(*batch, strict=True)
    delay_s = 0.1
    while True:
        try:
            return client.record_events(user_ids, item_ids, times_ms=times_ms, event_ids=event_ids)
        except ServerError as error:
            if not str(error).startswith(_RETRIED):
                raise
            _log.warning("the server does not record now, trying again in %g s: %s", delay_s, error)
        sleep(delay_s)
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)


def opened(path: str, stdin: IO[bytes]) -> Iterator[JsonLines]:
    """Yield the lines of a file, or of standard input for `-`.

    Raises:
        DataError: the file cannot be read.
    """
    if path == "-":
        yield JsonLines("stdin", stdin)
        return
    with ExitStack() as stack:
        try:  # as bytes: a line that is no UTF-8 is then refused with its number
            file = stack.enter_context(Path(path).open("rb"))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        yield JsonLines(path, file)
