"""The one table from errors to gRPC status codes.

A class that is not listed has the code of its nearest listed ancestor. Any exception that is not a
`Re4Error` is a defect: INTERNAL, and its text appears only in the server's log.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from re4.common.errors import (
    BundleReadOnlyError,
    HistoryStoreError,
    IndexUnavailableError,
    LiveItemsError,
    NotReadyError,
    NoUsableHistoryError,
    OverloadError,
    PermissionDeniedError,
    Re4Error,
    RequestError,
    TooLateError,
    UnauthenticatedError,
)


class StatusCode(IntEnum):
    """The status codes of gRPC. Those of gRPC's own library would load it, which takes 3 MB of a worker."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


STATUS_CODES: Final[Mapping[type[Re4Error], StatusCode]] = MappingProxyType(
    {
        Re4Error: StatusCode.INTERNAL,
        UnauthenticatedError: StatusCode.UNAUTHENTICATED,
        PermissionDeniedError: StatusCode.PERMISSION_DENIED,
        RequestError: StatusCode.INVALID_ARGUMENT,
        NoUsableHistoryError: StatusCode.FAILED_PRECONDITION,
        OverloadError: StatusCode.RESOURCE_EXHAUSTED,
        TooLateError: StatusCode.DEADLINE_EXCEEDED,
        NotReadyError: StatusCode.UNAVAILABLE,
        HistoryStoreError: StatusCode.UNAVAILABLE,
        IndexUnavailableError: StatusCode.UNAVAILABLE,
        BundleReadOnlyError: StatusCode.FAILED_PRECONDITION,
        LiveItemsError: StatusCode.UNAVAILABLE,
    }
)

STATUS_NAMES: Final[Mapping[int, str]] = MappingProxyType({code.value: code.name for code in StatusCode})
"""Name of each status code by its number, as messages carry it."""


def status_of(error: type[Re4Error]) -> StatusCode:
    """Return the status code of a class of errors."""
    return next(STATUS_CODES[ancestor] for ancestor in error.__mro__ if ancestor in STATUS_CODES)
