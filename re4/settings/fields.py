"""Settings as fields of frozen dataclasses: each is declared once, with default, help and bounds.

A settings class may hold other settings classes as groups. A file, the environment and the command line name
all settings in one flat list.
"""

import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from re4.common.errors import UsageError

_SettingsT = TypeVar("_SettingsT")


def setting(
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[str] = (),
    default_text: str | None = None,
    option: str | None = None,
    metavar: str | None = None,
    former: str | None = None,
    word: str | None = None,
) -> Any:
    """Declare a field.

    Args:
        default: The value of a setting that is not given; `dataclasses.MISSING` where it must be given.
        help_text: Its meaning, with the unit.
        low: The smallest value allowed; None for no bound.
        high: The largest value allowed; None for no bound.
        choices: The only values allowed; empty for any.
        default_text: What the help calls the default, where the value itself is not clear.
        option: Spelling of the command-line option, where it is not the field's name. A boolean with a
            spelling of its own has no `--no-…` beside it.
        metavar: What the help shows for the option's value.
        former: Earlier name of the setting, still accepted as an option.
        word: A word that is allowed in place of a whole number, such as `auto`; the type is then `int | str`.
    """
    metadata = {
        "help": help_text,
        "low": low,
        "high": high,
        "choices": choices,
        "default_text": default_text or str(plain(default)),
        "option": option,
        "metavar": metavar,
        "former": former,
        "word": word,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One declared setting."""

    field: Field[Any]
    hint: Any
    """Its annotated type."""

    @property
    def types(self) -> tuple[type, ...]:
        """The types that a value may have, without None."""
        return tuple(each for each in get_args(self.hint) or (self.hint,) if each is not NoneType)

    @property
    def help(self) -> str:
        """The help text, with the default unless it is None."""
        text: str = self.field.metadata["help"]
        if self.field.default is MISSING or self.field.metadata["default_text"] == "None":
            return text
        return f"{text} (default: {self.field.metadata['default_text']})"


def declared(kind: type) -> dict[str, Declared]:
    """Return every setting of a class and of its groups, by name."""
    hints = get_type_hints(kind)
    found: dict[str, Declared] = {}
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            found |= declared(hints[item.name])
        elif "help" in item.metadata:
            found[item.name] = Declared(field=item, hint=hints[item.name])
    return found


def construct(kind: type[_SettingsT], values: Mapping[str, Any]) -> _SettingsT:
    """Make a settings object and its groups from flat values.

    A value that is missing or None keeps its default; names that are not settings of the class are ignored.

    Raises:
        UsageError: a value out of its bounds.
    """
    given: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            given[name] = construct(hint, values)  # type: ignore[arg-type]
        elif values.get(name) is not None:
            given[name] = values[name]
    return kind(**given)


def flat(settings: Any) -> dict[str, Any]:
    """Return the values of a settings object and of its groups, by name."""
    found: dict[str, Any] = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            found |= flat(value)
        elif "help" in item.metadata:
            found[item.name] = value
    return found


def check(settings: Any) -> None:
    """Check every value of a settings object against its declaration; for `__post_init__`.

    Raises:
        UsageError: naming the option, the value and the values allowed.
    """
    for item in fields(settings):
        if "help" in item.metadata:
            label = item.metadata["option"] or option_name(item.name)
            check_value(label, getattr(settings, item.name), item)


def check_value(label: str, value: Any, item: Field[Any]) -> None:
    """Check one value against a field's declaration.

    Args:
        label: Name of the setting in the error, as its source spells it.
        value: The value; None is always allowed.
        item: The field, declared by `setting`.

    Raises:
        UsageError: naming the label, the value and the values allowed.
    """
    if value is None or (item.metadata["word"] is not None and value == item.metadata["word"]):
        return
    if item.metadata["word"] is not None and isinstance(value, str):
        raise UsageError(f"{label} is {shown(value)}; give a whole number, or {item.metadata['word']}.")
    low, high, choices = (item.metadata[name] for name in ("low", "high", "choices"))
    if choices and value not in choices:
        raise UsageError(f"{label} is {shown(value)}; choose one of {', '.join(choices)}.")
    if isinstance(value, int | float) and not -sys.float_info.max <= value <= sys.float_info.max:
        raise UsageError(f"{label} is {shown(value)}; it must be a finite number.")
    if low is not None and value < low:
        raise UsageError(f"{label} is {value}; the smallest value is {low}.")
    if high is not None and value > high:
        raise UsageError(f"{label} is {value}; the largest value is {high}.")


def shown(value: Any) -> str:
    """Return a value for an error message; Python writes no number of more than some thousand digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of too many digits"


def option_name(field_name: str) -> str:
    """Return the name of a setting as the command spells it."""
    return "--" + field_name.replace("_", "-")


def plain(value: Any) -> Any:
    """Return a value as JSON and TOML hold it: enums and paths as text."""
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value
