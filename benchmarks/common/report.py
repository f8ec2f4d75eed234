"""Parts that all reports share: how a measurement came about, its files, and tables in Markdown."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from re4.common.errors import Re4Error
from re4.common.files import replacing, write_json

Content: TypeAlias = Mapping[str, Any] | str | Callable[[Path], None]


def now_utc() -> str:
    """Return the time, in UTC to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """Return the command as the user typed it."""
    return shlex.join(["re4", *sys.argv[1:]])


def write_report(out: Path, files: Mapping[str, Content]) -> None:
    """Write files by name: a mapping as JSON, a text as it is, a picture by a function of its path."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if isinstance(content, Mapping):
                write_json(out / name, content)
                continue
            with replacing(out / name) as part:
                if isinstance(content, str):
                    part.write_text(content, encoding="utf-8")
                else:
                    content(part)
    except OSError as error:
        raise Re4Error(f"the report cannot be written to {out}: {error}") from None


def join_parts(parts: Sequence[str]) -> str:
    """Join the paragraphs of a page that are not empty."""
    return "\n\n".join(part for part in parts if part) + "\n"


def page_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is text, the others are right-aligned figures."""
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page_list(facts: Mapping[str, Any]) -> str:
    """Return a list of named facts."""
    return "\n".join(f"- **{name}:** {text}" for name, text in facts.items())


def number(value: float | None, digits: int = 1, *, missing: str = "–") -> str:
    """Return a figure as text, with commas between thousands."""
    return missing if value is None else f"{value:,.{digits}f}"


def with_half_width(figure: Mapping[str, float | None] | None, digits: int = 1) -> str:
    """Return the mean of an interval with ± half of it."""
    if figure is None or (mean := figure["mean"]) is None:
        return "–"
    high = figure.get("high")
    return number(mean, digits) + ("" if high is None else f" ±{high - mean:,.{digits}f}")
