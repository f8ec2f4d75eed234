"""Where a server's log goes: lines to standard error, as text for people or as JSON for machines.

Every line that is written while a call is answered carries the call's request id, whoever writes it.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

from re4.serving.observability.call_context import CURRENT_CALL
from re4.serving.settings import LogFormat

FIELDS: Final = "fields"
"""Key of `extra` under which a line may carry more than its text: a mapping, one JSON member for each."""

_BREAKS: Final = str.maketrans({code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85, 0x2028, 0x2029)})


def log_to_stderr(process: str, form: LogFormat = LogFormat.TEXT) -> None:
    """Log what this process says, from INFO on."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(process, form))
    handler.addFilter(is_loggable)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    ours = logging.getLogger("re4")  # which the command line may have sent to the terminal
    ours.handlers, ours.propagate = [], True


def is_loggable(record: logging.LogRecord) -> bool:
    """Whether a record tells of anything. gRPC's core does not, of a caller who left as the reply was sent.

    It calls that an error, with a traceback; one of its own making names a `grpc_call_error`.
    """
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError" or "grpc_call_error" in str(error)


def formatter(process: str, form: LogFormat) -> logging.Formatter:
    """What makes lines of records."""
    return _Json(process) if form is LogFormat.JSON else _Text(process)


class _Text(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process}: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        call = CURRENT_CALL.get(None)
        if call is None:
            return super().formatMessage(record)
        # What a caller sent must not look like lines of the server.
        record.message = f"{record.message.translate(_BREAKS)} (request {call.request_id})"
        return super().formatMessage(record)


class _Json(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "message": record.getMessage(),
        }
        call = CURRENT_CALL.get(None)
        if call is not None:
            line |= {"request_id": call.request_id, "method": call.method}
            if call.caller is not None:
                line["caller"] = call.caller.name
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
