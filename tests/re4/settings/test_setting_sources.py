"""Settings from options, environment and file: one precedence; unknown names and wrong values are refused."""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.common.errors import UsageError
from re4.settings.fields import check, construct, flat, setting
from re4.settings.sources import gather, read_environment


class Mood(StrEnum):
    CALM = "calm"
    WILD = "wild"


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = setting(3, "How deep.", low=1, high=9)

    def __post_init__(self):
        check(self)


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = setting(0.5, "How fast.", low=0)
    is_loud: bool = setting(False, "Whether loud.")
    mood: Mood = setting(Mood.CALM, "Which mood.")
    folder: Path | None = setting(None, "Where.")
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self):
        check(self)


VALUES = {
    "rate": st.floats(0, 1e6),
    "is_loud": st.booleans(),
    "mood": st.sampled_from(Mood),
    "depth": st.integers(1, 9),
}
SOURCES = st.fixed_dictionaries({}, optional=VALUES)


def toml(value):
    return json.dumps(str(value) if isinstance(value, Mood) else value)


@given(flags=SOURCES, variables=SOURCES, lines=SOURCES)
def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path_factory, flags, variables, lines):
    path = tmp_path_factory.mktemp("settings") / "file.toml"
    path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in lines.items()))
    values, sources = gather(
        Outer,
        flags | dict.fromkeys(VALUES.keys() - flags.keys()),
        file=path,
        environment={f"OUTER_{name.upper()}": str(value) for name, value in variables.items()},
        prefix="OUTER_",
    )
    assert values == lines | variables | flags
    assert flat(construct(Outer, values)) == flat(Outer()) | lines | variables | flags
    for name, source in sources.items():
        place = "flag" if name in flags else "environment" if name in variables else "file"
        assert source.startswith(place)
    assert sources.keys() == values.keys()


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("OUTER_RATES", "1", "unknown OUTER_RATES; known are OUTER_RATE, .* Did you mean OUTER_RATE for"),
        ("OUTER_RATE", "fast", "OUTER_RATE is 'fast'; it must be of type float"),
        ("OUTER_RATE", "-1", "OUTER_RATE is -1.0; the smallest value is 0"),
        ("OUTER_RATE", "nan", "OUTER_RATE is nan; it must be a finite number"),
        ("OUTER_IS_LOUD", "2", "OUTER_IS_LOUD is '2'; it must be of type bool"),
        ("OUTER_MOOD", "sad", "OUTER_MOOD is 'sad'; choose one of calm, wild"),
        ("OUTER_DEPTH", "10", "OUTER_DEPTH is 10; the largest value is 9"),
        ("OUTER_DEPTH", "", "OUTER_DEPTH is ''; it must be of type int"),
        ("OUTER_INNER", "{}", "unknown OUTER_INNER"),
    ],
)
def test_a_variable_that_does_not_belong_is_refused_by_name(variable, text, message):
    with pytest.raises(UsageError, match=message):
        read_environment({variable: text}, "OUTER_", Outer)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dept = 2", "unknown dept; known are .* Did you mean depth for dept"),
        ("mood = [1]", r"mood is \[1\]; choose one of calm, wild"),
        ("folder = 3", "folder is 3; it must be of type text"),
        ("[inner]\ndepth = 2", "unknown inner"),
        ("depth = " + "[" * 5000, "cannot be read: maximum recursion depth"),
        ("depth = " + "9" * 5000, "cannot be read: Exceeds the limit"),
        ("depth = 0x" + "f" * 5000, "depth is a number of too many digits; it must be a finite number"),
        ("folder = 0x" + "f" * 5000, "folder is a number of too many digits; it must be of type text"),
        ("rate = 0x" + "f" * 300, "rate is 1[0-9]+; it must be a finite number"),
    ],
)
def test_a_line_that_does_not_belong_is_refused_by_name(line, message, tmp_path):
    (tmp_path / "file.toml").write_text(line)
    with pytest.raises(UsageError, match=message):
        gather(Outer, {}, file=tmp_path / "file.toml", environment={}, prefix="OUTER_")


def test_other_variables_are_nobodys_business():
    given = {"PATH": "/bin", "OUTER": "1", "OUTER_FOLDER": "here"}
    assert read_environment(given, "OUTER_", Outer) == {"folder": Path("here")}
