"""What a person sees on the terminal: progress bars, tables, and JSON where a machine reads.

Everything for people goes to standard error; standard output carries only the answer, so that
`re4 evaluate RUN --json | jq` works. Bars are drawn only on a terminal; elsewhere (CI, a log file)
each one prints a single line when it starts.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

_WIDEST = 1000
"""Of a table that nobody's terminal has to show."""

people = Console(stderr=True, highlight=False)
_draws_progress: ContextVar[bool] = ContextVar("draws_progress", default=False)
"""Whether this process is a command that a person started; library code draws nothing by itself."""
answer = Console(highlight=False, soft_wrap=True)


class Bar:
    """One running progress bar; `advance` moves it, `note` shows the newest figures beside it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: int = 1) -> None:
        """Move the bar on by so many steps."""
        self._progress.advance(self._task, steps)

    def note(self, text: str) -> None:
        """Show a short text, such as the newest loss, at the end of the bar."""
        self._progress.update(self._task, note=text)


@contextmanager
def progress(title: str, total: int | None, *, unit_bytes: bool = False) -> Iterator[Bar]:
    """Show a bar with time left around work of `total` steps (None where the total is unknown)."""
    from rich.progress import DownloadColumn

    amount: ProgressColumn = DownloadColumn() if unit_bytes else MofNCompleteColumn()
    is_command = _draws_progress.get()
    if is_command and not people.is_terminal:
        people.print(f"{title} …")
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        amount,
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=people,
        disable=not (is_command and people.is_terminal),
    ) as bars:
        yield Bar(bars, bars.add_task(title, total=total, note=""))


def print_line(text: str) -> None:
    """Print one line for people (standard error)."""
    people.print(text, markup=False, soft_wrap=True)


class _TerminalHandler(logging.Handler):
    """Prints the message of a record, as a line for people."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(record.getMessage())


def log_to_terminal() -> None:
    """Show on the terminal what the library logs, and draw its progress. For the command line only."""
    logger = logging.getLogger("re4")
    logger.handlers = [_TerminalHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    _draws_progress.set(True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as the answer: the first column names the row, the others are right-aligned figures.

    A terminal squeezes what is too wide for it; a file or a pipe gets all of it.
    """
    grid = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        grid.add_row(*map(escape, row))
    if not answer.is_terminal:
        unbounded = answer.options.update(max_width=_WIDEST)
        answer.width = max(answer.width, Measurement.get(answer, unbounded, grid).maximum)
    answer.print(grid)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as the answer, for a machine to read."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()
