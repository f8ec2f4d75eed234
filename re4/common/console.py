"""Terminal output of the command: progress bars, tables, messages, JSON.

Results go to standard output and everything else to standard error, so that `re4 evaluate RUN --json | jq`
works. Progress bars are drawn on a terminal only; in a log file, a step of more than five
seconds prints one line.
"""

import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_SHORT_S = 5.0
"""A step that is shorter prints no line in a log file."""
_MAX_TABLE_WIDTH = 1000
"""Of a table that is written to a file or a pipe."""

stderr_console = Console(stderr=True, highlight=False)
stdout_console = Console(highlight=False, soft_wrap=True)
_draws_progress: ContextVar[bool] = ContextVar("draws_progress", default=False)
"""Whether this process is the command; library code that is imported elsewhere draws nothing."""


class Bar:
    """A running progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: int = 1) -> None:
        """Move the bar forward by a number of steps."""
        self._progress.advance(self._task, steps)

    def note(self, text: str) -> None:
        """Show a short text at the end of the bar, such as the newest loss."""
        self._progress.update(self._task, note=text)


@contextmanager
def progress(title: str, total: int | None, *, unit_bytes: bool = False) -> Iterator[Bar]:
    """Show a progress bar with the time left while the block runs; None is an unknown total."""
    from rich.progress import DownloadColumn

    amount: ProgressColumn = DownloadColumn() if unit_bytes else MofNCompleteColumn()
    is_command = _draws_progress.get()
    with ExitStack() as stack:
        if is_command and not stderr_console.is_terminal:
            line = threading.Timer(_SHORT_S, print_line, [f"{title} …"])
            line.daemon = True
            line.start()
            stack.callback(line.cancel)
        bars = stack.enter_context(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                amount,
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=stderr_console,
                disable=not (is_command and stderr_console.is_terminal),
            )
        )
        yield Bar(bars, bars.add_task(title, total=total, note=""))


def print_line(text: str) -> None:
    """Print one line to standard error."""
    stderr_console.print(text, markup=False, soft_wrap=True)


class _TerminalHandler(logging.Handler):
    """Prints the message of a log record as a line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(record.getMessage())


def log_to_terminal() -> None:
    """Show the log and the progress bars of the library on the terminal. For the command line only."""
    logger = logging.getLogger("re4")
    logger.handlers = [_TerminalHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    _draws_progress.set(True)


def number_of(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 item` or `2,000 items`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def hide_progress() -> None:
    """Draw no progress bars from now on, as in one of several processes that do the same work."""
    _draws_progress.set(False)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int = 1
) -> None:
    """Print a table to standard output: the first columns are text, the others are right-aligned figures.

    A terminal cuts a table that is too wide; a file or a pipe gets the whole table.
    """
    has_header = any(columns)
    grid = Table(title=title, title_justify="left", header_style="bold", show_header=has_header)
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number < num_text_columns else "right")
    for row in rows:
        grid.add_row(*map(escape, row))
    if not stdout_console.is_terminal:
        unbounded = stdout_console.options.update(max_width=_MAX_TABLE_WIDTH)
        stdout_console.width = max(
            stdout_console.width, Measurement.get(stdout_console, unbounded, grid).maximum
        )
    stdout_console.print(grid)


def fields(title: str, values: Mapping[str, str]) -> None:
    """Print names and values to standard output, one a line, for people and for `grep` in a pipe."""
    width = max(map(len, values), default=0)
    lines = [f"{name:<{width}}  {text}" for name, text in values.items()]
    stdout_console.print(Text(title, style="bold"))
    stdout_console.print(Text("".join(f"  {line}\n" for line in lines)))


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()
