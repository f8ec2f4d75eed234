"""Every error of the tree has the status that the contract promises; a new class is added here on purpose."""

from re4.common import errors
from re4.serving.protocol.status_codes import STATUS_CODES, StatusCode, status_of

INTERNAL = StatusCode.INTERNAL
EXPECTED = {
    "Re4Error": INTERNAL,
    "UsageError": INTERNAL,
    "DataError": INTERNAL,
    "FetchError": INTERNAL,
    "RunError": INTERNAL,
    "TrainingError": INTERNAL,
    "ExportError": INTERNAL,
    "GateError": INTERNAL,
    "BundleError": INTERNAL,
    "BundleBusyError": INTERNAL,
    "BundleDamagedError": INTERNAL,
    "BundleMismatchError": INTERNAL,
    "BundleReadOnlyError": StatusCode.FAILED_PRECONDITION,
    "BundleUnavailableError": INTERNAL,
    "RequestError": StatusCode.INVALID_ARGUMENT,
    "NoUsableHistoryError": StatusCode.FAILED_PRECONDITION,
    "OverloadError": StatusCode.RESOURCE_EXHAUSTED,
    "NotReadyError": StatusCode.UNAVAILABLE,
    "ServerError": INTERNAL,
    "ShedError": StatusCode.RESOURCE_EXHAUSTED,
    "SecurityError": INTERNAL,
    "UnauthenticatedError": StatusCode.UNAUTHENTICATED,
    "LiveItemsError": StatusCode.UNAVAILABLE,
    "HistoryStoreError": StatusCode.UNAVAILABLE,
    "IndexUnavailableError": StatusCode.UNAVAILABLE,
    "PermissionDeniedError": StatusCode.PERMISSION_DENIED,
    "UnreadRepliesError": StatusCode.RESOURCE_EXHAUSTED,
    "RateError": StatusCode.RESOURCE_EXHAUSTED,
    "TooLateError": StatusCode.DEADLINE_EXCEEDED,
}


def tree(root: type[errors.Re4Error]) -> set[type[errors.Re4Error]]:
    return {root}.union(
        *(tree(child) for child in root.__subclasses__() if child.__module__ == errors.__name__)
    )


def test_every_class_of_the_tree_has_its_status() -> None:
    assert {error.__name__: status_of(error) for error in tree(errors.Re4Error)} == EXPECTED


def test_the_table_lists_only_classes_of_the_tree() -> None:
    assert set(STATUS_CODES) <= tree(errors.Re4Error)
