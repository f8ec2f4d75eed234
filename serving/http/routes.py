"""The routes of the methods: path and verb of each, and the types of its messages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from re4.protos.v1 import retrieval_pb2
from re4.serving.transports.transport import Answer, Method

OPENAPI_PATH: Final = "/v1/openapi.json"

_READS: Final = ("/re4.v1.Retrieval/Info", "/grpc.health.v1.Health/Check")
"""Methods without a body of the request."""
_PATHS: Final = {"/grpc.health.v1.Health/Check": "/v1/health"}
"""Paths that are not `/v1/` and the method's name in lower case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """A method of the contract as HTTP has it."""

    path: str
    """Such as `/v1/batch-retrieve`."""
    has_body: bool
    """Whether it is a POST; otherwise a GET."""
    descriptor: MethodDescriptor
    answer: Answer

    @property
    def verb(self) -> str:
        """The HTTP method."""
        return "POST" if self.has_body else "GET"

    def request(self) -> Message:
        """Return an empty request."""
        return message_factory.GetMessageClass(self.descriptor.input_type)()

    def reply(self, data: bytes) -> Message:
        """Parse a reply."""
        return message_factory.GetMessageClass(self.descriptor.output_type).FromString(data)


def routes_of(methods: Sequence[Method]) -> dict[str, Route]:
    """Return the routes of all methods without streams, by path."""
    routes = {}
    for method in methods:
        if method.answer is None:
            continue
        _, service, name = method.path.split("/")
        file = health_pb2 if service == "grpc.health.v1.Health" else retrieval_pb2
        descriptor = file.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods_by_name[name]
        words = re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()
        path = _PATHS.get(method.path, f"/v1/{words}")
        routes[path] = Route(
            path=path, has_body=method.path not in _READS, descriptor=descriptor, answer=method.answer
        )
    return routes
