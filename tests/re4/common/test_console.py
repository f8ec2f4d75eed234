"""Tables on standard output, and the lines of long steps."""

import threading

import pytest

from re4.common import console
from re4.common.console import table


def test_a_table_that_no_terminal_shows_is_whole(capsys):
    names = [f"a rather long name of a row, number {number}" for number in range(3)]
    table(
        "wide",
        ["", *(f"column {number}" for number in range(20))],
        [[name, *"abcdefghijklmnopqrst"] for name in names],
    )
    lines = capsys.readouterr().out.splitlines()
    for name in names:
        (line,) = (line for line in lines if name in line)
        assert [cell.strip() for cell in line.strip("│ ").split("│")] == [name, *"abcdefghijklmnopqrst"]
    assert "column 19" in "\n".join(lines)


@pytest.mark.parametrize(("short_s", "expected"), [(0.0, ["reading [x] …"]), (600.0, [])])
def test_only_long_steps_print_a_line_where_there_is_no_terminal(short_s, expected, monkeypatch):
    lines, printed = [], threading.Event()
    monkeypatch.setattr(console, "_SHORT_S", short_s)
    monkeypatch.setattr(console, "print_line", lambda line: (lines.append(line), printed.set()))
    console.log_to_terminal()
    with console.progress("reading [x]", None):
        assert printed.wait(20 if expected else 0) == bool(expected)
    assert lines == expected
