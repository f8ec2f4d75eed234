"""The one table from errors to gRPC status codes.

A class that is not listed has the code of its nearest listed ancestor. Any exception that is not a
`Re4Error` is a defect: INTERNAL, and its text appears only in the server's log.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import grpc

from re4.common.errors import (
    BundleReadOnlyError,
    HistoryStoreError,
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

STATUS_CODES: Final[Mapping[type[Re4Error], grpc.StatusCode]] = MappingProxyType(
    {
        Re4Error: grpc.StatusCode.INTERNAL,
        UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
        PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
        RequestError: grpc.StatusCode.INVALID_ARGUMENT,
        NoUsableHistoryError: grpc.StatusCode.FAILED_PRECONDITION,
        OverloadError: grpc.StatusCode.RESOURCE_EXHAUSTED,
        TooLateError: grpc.StatusCode.DEADLINE_EXCEEDED,
        NotReadyError: grpc.StatusCode.UNAVAILABLE,
        HistoryStoreError: grpc.StatusCode.UNAVAILABLE,
        BundleReadOnlyError: grpc.StatusCode.FAILED_PRECONDITION,
        LiveItemsError: grpc.StatusCode.UNAVAILABLE,
    }
)

STATUS_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {code.value[0]: code.name for code in grpc.StatusCode}
)
"""Name of each status code by its number, as messages carry it."""


def status_of(error: type[Re4Error]) -> grpc.StatusCode:
    """Return the status code of a class of errors."""
    return next(STATUS_CODES[ancestor] for ancestor in error.__mro__ if ancestor in STATUS_CODES)
