"""Callers at a steady rate, each on a connection of its own, and what became of every call.

A call is due at a fixed time, whatever became of those before it, and its latency counts from then. Answers
are kept as they came and judged afterwards, by `right_answers`. Knows no version.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import grpc
import numpy as np
from running_server import DEADLINE_S

from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.client.connection import PLAIN, Connection

OPTIONS = (
    # Otherwise all connections of one process to one address are one connection, and so one worker's.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
)

OVERLOAD = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
"""gRPC's core ends calls that waited for a second with CANCELLED."""

HEED_HEALTH = (
    (
        "grpc.service_config",
        json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}),
    ),
)
"""For a channel that watches the health service, and sends nothing to a server that says NOT_SERVING."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call; times are `time.monotonic` seconds."""

    question: int
    """Which of the questions was asked."""
    due: float
    began: float
    ended: float
    code: grpc.StatusCode
    details: str
    num_tries: int
    """More than 1 where the call was rejected under overload and sent again."""
    reply: bytes
    """Serialised, stage times removed, so that equal answers are equal bytes; empty where the call failed."""

    @property
    def is_answered(self) -> bool:
        return self.code is grpc.StatusCode.OK


class SteadyCallers:
    """Asks the same questions in turn, at a rate, while the `with` block runs."""

    def __init__(
        self,
        address: str,
        questions: Sequence[pb.RetrieveRequest],
        *,
        rate_per_s: float,
        num_callers: int = 8,
        deadline_s: float = DEADLINE_S,
        options: Sequence[tuple[str, object]] = (),
        connection: Connection = PLAIN,
        max_tries: int = 1,
    ) -> None:
        """Prepare the callers.

        Args:
            address: HOST:PORT of the server.
            questions: What to ask.
            rate_per_s: Calls that are due per second, of all callers together.
            num_callers: Threads, each with one connection and one call at a time.
            deadline_s: Seconds that a call may take.
            options: For the channels, beside the usual ones.
            connection: TLS and token.
            max_tries: How often a call is sent that is rejected under overload.
        """
        self._questions = [question.SerializeToString() for question in questions]
        self._interval_s = num_callers / rate_per_s
        self._deadline_s = deadline_s
        self._metadata = connection.metadata
        self._max_tries = max_tries
        self._channels = [
            connection.channel(address, options=(*OPTIONS, *options)) for _ in range(num_callers)
        ]
        self._calls: list[list[Call]] = [[] for _ in range(num_callers)]
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._call_at_a_rate, args=(number,)) for number in range(num_callers)
        ]

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._deadline_s + DEADLINE_S)
        for channel in self._channels:
            channel.close()

    @property
    def calls(self) -> list[Call]:
        """Every call that has ended, in order of their beginning."""
        return sorted((call for calls in self._calls for call in calls), key=lambda call: call.began)

    def wait_for_answers(self, num_answers: int = 1) -> None:
        """Wait until every caller has had so many more answers."""
        before = [self._num_answered(number) for number in range(len(self._threads))]
        with self._changed:
            assert self._changed.wait_for(
                lambda: all(
                    self._num_answered(number) >= had + num_answers for number, had in enumerate(before)
                ),
                DEADLINE_S,
            ), "callers get no answers: " + said(self.calls[-20:])

    def wait_for_failures(self) -> None:
        """Wait until every caller's newest call has failed."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: all(calls and not calls[-1].is_answered for calls in self._calls), DEADLINE_S
            )

    def _num_answered(self, number: int) -> int:
        return sum(call.is_answered for call in self._calls[number])

    def _call_at_a_rate(self, number: int) -> None:
        method = self._channels[number].unary_unary("/re4.v1.Retrieval/Retrieve")
        # The callers take turns, so that the whole load is even.
        due = self._started + self._interval_s * (1 + number / len(self._threads))
        question = number
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            question = (question + 1) % len(self._questions)
            began = time.monotonic()
            code, details, reply, num_tries = None, "", b"", 0
            while num_tries == 0 or (code in OVERLOAD and num_tries < self._max_tries):
                num_tries += 1
                try:
                    data = method(
                        self._questions[question], timeout=self._deadline_s, metadata=self._metadata
                    )
                    code, details, reply = grpc.StatusCode.OK, "", _without_times(data)
                except grpc.RpcError as error:
                    code, details = error.code(), error.details() or ""
            call = Call(
                question=question,
                due=due,
                began=began,
                ended=time.monotonic(),
                code=code,
                details=details,
                num_tries=num_tries,
                reply=reply,
            )
            with self._changed:
                self._calls[number].append(call)
                self._changed.notify_all()
            due += self._interval_s


def said(calls: Sequence[Call]) -> str:
    """What calls ended with, counted, for people."""
    return str(Counter((call.code.name, call.details) for call in calls).most_common(8))


def latency_ms(calls: Sequence[Call], percent: float) -> float:
    """Percentile of the answered calls' latency, from when they were due."""
    times = [1e3 * (call.ended - call.due) for call in calls if call.is_answered]
    return float(np.percentile(times, percent)) if times else float("nan")


def _without_times(data: bytes) -> bytes:
    reply = pb.RetrieveReply.FromString(data)
    reply.ClearField("stage_times")
    return reply.SerializeToString(deterministic=True)
