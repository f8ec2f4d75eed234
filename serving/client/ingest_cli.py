"""The subcommand `re4 ingest`."""

import contextlib
import signal
import sys
from typing import Annotated

import typer

from re4.common import console
from re4.common.errors import UsageError
from re4.serving.client.options import Address, Ca, Certificate, Key, Tls, TlsServerName, TokenFile
from re4.serving.settings import DEFAULT_ADDRESS


def ingest(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]…",
            help='Files of JSON lines, such as {"user": "u-7", "item": "SKU-1", "time_ms": 1764403200000, '
            '"event_id": "order-9"}; time_ms and event_id may be missing. - is standard input.',
        ),
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    kafka: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT,…",
            help="Read a topic of Kafka instead of files, until stopped. A message is JSON as a line is. "
            "Needs the extra kafka.",
        ),
    ] = None,
    topic: Annotated[str | None, typer.Option(help="With --kafka: the topic.")] = None,
    group: Annotated[str, typer.Option(help="With --kafka: the consumer group.")] = "re4-ingest",
    kafka_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="With --kafka: an option of librdkafka, such as security.protocol=SSL."
        ),
    ] = None,
    batch_events: Annotated[int, typer.Option(help="Events of one call.", min=1)] = 500,
    tls: Tls = False,
    ca: Ca = None,
    tls_server_name: TlsServerName = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Record the events of files, of standard input or of Kafka in a running server.

    Events arrive at least once, and are recorded once: by their event_id, or by their place in the file or
    topic. While the server cannot record, the events wait. Events of a file without time_ms get the present
    time.

    Example: tail -F events.jsonl | re4 ingest -

    Example: re4 ingest --kafka broker:9092 --topic events
    """
    from re4.common.extras import require
    from re4.serving.client.client import RetrievalClient
    from re4.serving.client.connection import Connection
    from re4.serving.client.ingest import KafkaTopic, opened, send_all

    if (kafka is None) == (not files):
        raise UsageError("which events? Give files of JSON lines (- for standard input), or --kafka")
    if (kafka is None) != (topic is None):
        raise UsageError("--kafka and --topic belong together")
    connection = Connection.read(
        tls=tls, ca=ca, server_name=tls_server_name, certificate=certificate, key=key, token_file=token_file
    )
    counts = [0, 0]

    def count(num_sent: int, num_new: int) -> None:
        counts[0] += num_sent
        counts[1] += num_new

    stopped: list[int] = []
    with RetrievalClient(address, connection=connection) as client, contextlib.ExitStack() as stack:
        if kafka is not None and topic is not None:
            require("re4 ingest --kafka", "confluent_kafka")
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, _: stopped.append(number))
            source = KafkaTopic(kafka, topic, group, _options(kafka_option or []))
            stack.callback(source.close)
            send_all(source, client, batch_events, on_sent=count, is_stopped=lambda: bool(stopped))
        for file in files or ():
            for lines in opened(file, sys.stdin.buffer):
                send_all(lines, client, batch_events, on_sent=count)
    console.print_line(f"{counts[0]:,} events were sent, {counts[1]:,} of them were new")


def _options(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--kafka-option {text!r}: give NAME=VALUE")
        found[name] = value
    return found
