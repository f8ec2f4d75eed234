"""Settings as fields of frozen dataclasses: each declared once, with its default, its help and its bounds.

A settings class may hold further ones as groups; to a file, the environment and a command line all of them
are one flat list of names. Knows no setting of its own; `re4.settings.sources` reads values from outside.
"""

import math
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
) -> Any:
    """Declare a field.

    Args:
        default: Its value where none is given; `dataclasses.MISSING` where one must be given.
        help_text: What it is, with its unit.
        low: The smallest value allowed; None for no bound.
        high: The largest value allowed; None for no bound.
        choices: The only values allowed; empty for any.
        default_text: What the help calls the default, where the value itself is not clear.
        option: Spelling of the command-line option, where it is not the field's name. A boolean with a
            spelling of its own has no `--no-…` beside it.
        metavar: What the help shows for the option's value.
    """
    metadata = {
        "help": help_text,
        "low": low,
        "high": high,
        "choices": choices,
        "default_text": default_text or str(plain(default)),
        "option": option,
        "metavar": metavar,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One setting of a class or of its groups."""

    field: Field[Any]
    hint: Any
    """Its type, as annotated."""

    @property
    def types(self) -> tuple[type, ...]:
        """The types that a value may have; without None."""
        return tuple(each for each in get_args(self.hint) or (self.hint,) if each is not NoneType)

    @property
    def help(self) -> str:
        """What it is, and its default."""
        text: str = self.field.metadata["help"]
        if self.field.default is MISSING:
            return text
        return f"{text} (default: {self.field.metadata['default_text']})"


def declared(kind: type) -> dict[str, Declared]:
    """Every setting of a class and of its groups, by name."""
    hints = get_type_hints(kind)
    found: dict[str, Declared] = {}
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            found |= declared(hints[item.name])
        elif "help" in item.metadata:
            found[item.name] = Declared(field=item, hint=hints[item.name])
    return found


def construct(kind: type[_SettingsT], values: Mapping[str, Any]) -> _SettingsT:
    """Make a settings object, groups and all, from flat values.

    A value that is missing or None keeps its default; a name that is not a setting of the class is left out.

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
    """The values of a settings object and of its groups, by name."""
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
        label: What to call the setting: as whoever gave the value wrote it.
        value: The value; None where it is left open.
        item: The field, declared by `setting`.

    Raises:
        UsageError: naming the label, the value and the values allowed.
    """
    if value is None:
        return
    low, high, choices = (item.metadata[name] for name in ("low", "high", "choices"))
    if choices and value not in choices:
        raise UsageError(f"{label} is {value!r}; choose one of {', '.join(choices)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{label} is {value}; it must be a finite number.")
    if low is not None and value < low:
        raise UsageError(f"{label} is {value}; the smallest value is {low}.")
    if high is not None and value > high:
        raise UsageError(f"{label} is {value}; the largest value is {high}.")


def option_name(field_name: str) -> str:
    """The command's spelling of a setting's name."""
    return "--" + field_name.replace("_", "-")


def plain(value: Any) -> Any:
    """A setting's value as JSON and TOML have it: text for an enum and for a path."""
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value
