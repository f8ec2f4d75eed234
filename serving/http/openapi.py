"""The OpenAPI document of the HTTP routes, made from the contract's descriptors and its comments."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from re4 import __version__
from re4.protos.v1 import retrieval_pb2
from re4.serving.http.routes import Route

_INTEGER_TEXT: Final = {"type": "string", "pattern": r"^-?[0-9]+$"}
_SCALARS: Final[dict[int, dict[str, Any]]] = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    # 64-bit integers are texts in replies; requests may have both.
    FieldDescriptor.CPPTYPE_INT64: {"oneOf": [_INTEGER_TEXT, {"type": "integer", "format": "int64"}]},
    FieldDescriptor.CPPTYPE_UINT64: {"oneOf": [_INTEGER_TEXT, {"type": "integer", "minimum": 0}]},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
}
_STATUS: Final[dict[str, Any]] = {
    "type": "object",
    "description": "An error: a google.rpc.Status. `details` advises when to try again.",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "integer", "description": "The gRPC status code."},
        "message": {"type": "string", "description": "Names the field, its value and the allowed values."},
        "details": {"type": "array", "items": {"type": "object"}},
    },
}
_PROTO: Final = Path(retrieval_pb2.__file__).with_name("retrieval.proto")


def openapi_document(routes: Sequence[Route]) -> bytes:
    """Return the document of some routes, in JSON."""
    comments = _comments(_PROTO.read_text(encoding="utf-8"))
    schemas: dict[str, Any] = {"Status": _STATUS}
    paths = {}
    for route in routes:
        _add_message(route.descriptor.output_type, schemas, comments)
        operation: dict[str, Any] = {
            "operationId": route.descriptor.name if route.has_body else f"Get{route.descriptor.name}",
            "summary": comments.get(f"Retrieval.{route.descriptor.name}", route.descriptor.full_name),
            "parameters": [
                {
                    "name": "X-Server-Timeout",
                    "in": "header",
                    "description": "The deadline of the call, in seconds.",
                    "schema": {"type": "number", "exclusiveMinimum": 0},
                }
            ],
            "responses": {
                "200": _response("The reply.", route.descriptor.output_type.name),
                "default": _response("An error.", "Status"),
            },
        }
        if route.has_body:
            _add_message(route.descriptor.input_type, schemas, comments)
            operation["requestBody"] = {
                "required": True,
                "content": _content(route.descriptor.input_type.name),
            }
        paths[route.path] = {route.verb.lower(): operation}
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Re4 Retrieval",
            "version": __version__,
            "description": "The gRPC contract as JSON over HTTP, by protobuf's JSON mapping.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _response(description: str, name: str) -> dict[str, Any]:
    return {"description": description, "content": _content(name)}


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _add_message(message: Descriptor, schemas: dict[str, Any], comments: dict[str, str]) -> None:
    """Add the schemas of a message and of all messages in it."""
    if message.name in schemas:
        return
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
    schemas[message.name] = schema
    if message.name in comments:
        schema["description"] = comments[message.name]
    for field in message.fields:
        found = _schema_of(field, schemas, comments)
        if comment := comments.get(f"{message.name}.{field.name}"):
            found = {**found, "description": comment}
        schema["properties"][field.json_name] = found


def _schema_of(field: FieldDescriptor, schemas: dict[str, Any], comments: dict[str, str]) -> dict[str, Any]:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        value = _schema_of(inner.fields_by_name["value"], schemas, comments)
        return {"type": "object", "additionalProperties": value}
    if inner is not None:
        _add_message(inner, schemas, comments)
        found: dict[str, Any] = {"$ref": f"#/components/schemas/{inner.name}"}
    elif field.enum_type is not None:
        found = _enum(field.enum_type)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        found = {"type": "string", "format": "byte"}
    else:
        found = _SCALARS[field.cpp_type]
    return {"type": "array", "items": found} if field.is_repeated else found


def _enum(enum: EnumDescriptor) -> dict[str, Any]:
    return {"type": "string", "enum": [value.name for value in enum.values]}


def _comments(proto: str) -> dict[str, str]:
    """Return the comments of messages, methods and fields: `Message`, `Service.Method`, `Message.field`."""
    found: dict[str, str] = {}
    outer, lines = "", []
    for line in map(str.strip, proto.splitlines()):
        if line.startswith("//"):
            lines.append(line.removeprefix("//").strip())
            continue
        if match := re.match(r"(?:message|service|enum) (\w+) \{", line):
            outer = name = match[1]
        elif match := re.match(r"(?:rpc (\w+)\(|(?:[\w.]+ )+(\w+) = \d+)", line):
            name = f"{outer}.{match[1] or match[2]}"
        else:
            name = ""
        if name and lines:
            found[name] = " ".join(lines)
        lines = []
    return found
