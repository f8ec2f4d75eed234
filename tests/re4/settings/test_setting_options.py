"""Options of a subcommand are the fields of its settings classes: spelling, help, defaults, bounds."""

from dataclasses import MISSING, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from re4.common.errors import UsageError
from re4.settings.fields import check, construct, setting
from re4.settings.options import with_options


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Paint:
    folder: Path = setting(MISSING, "Where.")
    colour: Colour = setting(Colour.RED, "Which colour.")
    num_coats: int = setting(2, "How many.", low=1, option="--coats", metavar="NUMBER")


@dataclass(frozen=True, kw_only=True)
class Drying:
    hours: float | None = setting(None, "How long.", default_text="until dry")
    is_dry_run: bool = setting(False, "Do nothing.", option="--dry-run")
    fan: bool = setting(True, "Blow.")

    def __post_init__(self) -> None:
        check(self)


made: list[Any] = []
app = typer.Typer()


@app.command()
@with_options(Drying, "Drying")
@with_options(Paint, "Paint")
def paint(wall: Annotated[str, typer.Argument()], **settings: Any) -> None:
    """Paint."""
    made[:] = wall, construct(Paint, settings), construct(Drying, settings)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"}, color=False)


def test_what_is_not_given_keeps_its_default():
    assert run("north", "--folder", "here").exit_code == 0
    assert made == ["north", Paint(folder=Path("here")), Drying()]


def test_each_option_sets_its_field():
    words = ["--folder", "f", "--colour", "blue", "--coats", "3", "--hours", "1.5", "--dry-run", "--no-fan"]
    assert run("north", *words).exit_code == 0
    assert made[1:] == [
        Paint(folder=Path("f"), colour=Colour.BLUE, num_coats=3),
        Drying(hours=1.5, is_dry_run=True, fan=False),
    ]


def test_help_shows_defaults_panels_and_placeholders():
    shown = run("--help").output
    assert shown.index(" Paint ") < shown.index(" Drying ")
    for text in ("How many. (default: 2)", "How long. (default: until dry)", "NUMBER", "Where."):
        assert text in shown
    assert "--no-dry-run" not in shown
    assert "Where. (default" not in shown


def test_a_required_option_is_required():
    assert run("north").exit_code == 2


def test_a_value_out_of_bounds_is_named_as_the_option_is_spelled():
    with pytest.raises(UsageError, match="--coats is 0; the smallest value is 1"):
        check(Paint(folder=Path(), num_coats=0))
