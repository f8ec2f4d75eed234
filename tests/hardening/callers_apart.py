"""Steady callers in a process of their own: what the tests' process is busy with is not seen as latency."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

from running_server import DEADLINE_S
from steady_callers import Call, SteadyCallers

from re4.protos.v1 import retrieval_pb2 as pb


class CallersApart:
    """As `SteadyCallers`; `calls` are there when the `with` block has ended."""

    def __init__(self, address: str, questions: Sequence[pb.RetrieveRequest], **options: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        arguments = (theirs, address, [question.SerializeToString() for question in questions], options)
        self._process = spawn.Process(target=_call_until_told, args=arguments, daemon=True)
        self.calls: list[Call] = []

    def __enter__(self) -> Self:
        self._process.start()
        self.wait_for_answers(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self.calls = self._receive()
        self._process.join(DEADLINE_S)

    def wait_for_answers(self, num_answers: int = 1) -> None:
        """Wait until every caller has had so many more answers."""
        self._pipe.send(num_answers)
        assert self._receive() is None

    def _receive(self) -> Any:
        assert self._pipe.poll(2 * DEADLINE_S), "the callers' process does not answer"
        return self._pipe.recv()


def _call_until_told(
    pipe: Connection, address: str, questions: Sequence[bytes], options: dict[str, Any]
) -> None:
    parsed = [pb.RetrieveRequest.FromString(question) for question in questions]
    with SteadyCallers(address, parsed, **options) as callers:
        while (num_answers := pipe.recv()) is not None:
            callers.wait_for_answers(num_answers)
            pipe.send(None)
    pipe.send(callers.calls)
