"""Tables on standard output."""

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
