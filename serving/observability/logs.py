"""The log of a server: lines to standard error, as text or as JSON.

Every line that is written while a call is answered has the call's request id.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

from re4.serving.observability.call_context import CURRENT_CALL
from re4.serving.settings import LogFormat

FIELDS: Final = "fields"
"""Key of `extra` for further fields of a line: a mapping; each entry becomes a JSON member."""

_CONTROL_CHARACTERS: Final = str.maketrans(
    {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85, 0x2028, 0x2029)}
)


def log_to_stderr(process: str, form: LogFormat = LogFormat.TEXT) -> None:
    """Send this process's log to standard error, from INFO on."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(process, form))
    handler.addFilter(is_loggable)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    ours = logging.getLogger("re4")  # the command line may have set a handler for the terminal
    ours.handlers, ours.propagate = [], True


def is_loggable(record: logging.LogRecord) -> bool:
    """Return whether a record has information. gRPC's report of a caller that left during the reply has none.

    gRPC's core logs that as an error, with a traceback. Its real errors contain `grpc_call_error`.
    """
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError" or "grpc_call_error" in str(error)


def formatter(process: str, form: LogFormat) -> logging.Formatter:
    """Return the formatter of a log format."""
    return _Json(process) if form is LogFormat.JSON else _Text(process)


class _Text(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process}: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        call = CURRENT_CALL.get(None)
        if call is None:
            return super().formatMessage(record)
        # A caller's text must not look like further lines of the server.
        record.message = f"{record.message.translate(_CONTROL_CHARACTERS)} (request {call.request_id})"
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
