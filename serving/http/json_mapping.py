"""Requests and replies of the contract as JSON, and statuses of gRPC as HTTP statuses.

Messages follow protobuf's JSON mapping (https://protobuf.dev/programming-guides/json), statuses the mapping
of gRPC's transcoding (google/rpc/code.proto).
"""

import json
import math
from collections.abc import Mapping
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message

from re4.common.errors import RequestError
from re4.serving.protocol.status_codes import StatusCode
from re4.serving.transports.transport import RETRY_PUSHBACK, StatusError

_HTTP_STATUSES: Final[Mapping[StatusCode, int]] = {
    StatusCode.OK: 200,
    StatusCode.CANCELLED: 499,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.ABORTED: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
"""All others are 500."""


def http_status(code: StatusCode) -> int:
    """Return the HTTP status of a gRPC status."""
    return _HTTP_STATUSES.get(code, 500)


def parse_request(message: Message, body: bytes) -> bytes:
    """Return the wire format of a request in JSON.

    Args:
        message: An empty message of the request's type; it is filled.
        body: The JSON object; empty for a request without fields.

    Raises:
        RequestError: the body is not a JSON object of the message's fields.
    """
    try:
        text = body.decode() or "{}"
        if text.lstrip()[:1] != "{":
            raise ValueError("it is not an object")
        json_format.Parse(text, message, max_recursion_depth=20)
    except UnicodeDecodeError:
        raise RequestError("the request's body is not valid UTF-8") from None
    except (json_format.ParseError, ValueError) as error:
        raise RequestError(
            f"the request's body is not a {message.DESCRIPTOR.full_name} in JSON: {error}"
        ) from None
    except RecursionError:
        raise RequestError("the request's body is nested too deep") from None
    return message.SerializeToString()


def format_reply(message: Message) -> bytes:
    """Return a reply in JSON, with every field that is not a message."""
    return json_format.MessageToJson(
        message, indent=None, ensure_ascii=False, always_print_fields_with_no_presence=True
    ).encode()


def format_error(error: StatusError) -> tuple[bytes, list[tuple[str, str]]]:
    """Return the body of an error, a `google.rpc.Status`, and its headers."""
    status: dict[str, object] = {"code": error.code.value, "message": error.details}
    headers = []
    for name, value in error.metadata:
        if name == RETRY_PUSHBACK:
            retry_s = int(value) / 1000
            info = "type.googleapis.com/google.rpc.RetryInfo"
            status["details"] = [{"@type": info, "retryDelay": f"{retry_s:g}s"}]
            headers.append(("retry-after", str(math.ceil(retry_s))))
        else:
            headers.append((name, value))
    return json.dumps(status, ensure_ascii=False).encode(), headers
