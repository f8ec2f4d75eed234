"""A table of a page in Markdown, for every report."""

from collections.abc import Sequence


def page_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give the table; the first column is text, the others are right-aligned figures."""
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
