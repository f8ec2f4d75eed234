"""Values of settings from their sources: options win over the environment, that over a TOML file.

An unknown name is refused with the nearest known one: a misspelt limit must not mean no limit. The parsing is
our own: pydantic's TypeAdapter would be as long, as its messages name neither the setting nor its source.
"""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

from re4.common.errors import UsageError
from re4.settings.fields import Declared, check_value, declared, option_name, shown

DEFAULT_SOURCE: Final = "default"
_WORDS_FOR_BOOL: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def gather(
    kind: type,
    flags: Mapping[str, Any],
    *,
    file: Path | None,
    environment: Mapping[str, str],
    prefix: str,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Collect the given values: options win over the environment, that over the file.

    Args:
        kind: The settings class.
        flags: Values of command-line options by name; None for those not given.
        file: A TOML file for `read_file`; None for none.
        environment: All environment variables of this process.
        prefix: Start of the names of variables that are settings, such as `RE4_SERVE_`.

    Returns:
        The values by name, and the source of each in words. A setting in neither has its default.

    Raises:
        UsageError: an unknown name, or a value that is not allowed.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if file is not None:
        values |= read_file(file, kind)
        sources |= dict.fromkeys(values, f"file {file}")
    from_environment = read_environment(environment, prefix, kind)
    values |= from_environment
    sources |= {name: f"environment {prefix}{name.upper()}" for name in from_environment}
    known = declared(kind)
    for name, value in flags.items():
        if value is not None:
            check_value(option_name(name), value, known[name].field)
            values[name] = value
            sources[name] = f"flag {option_name(name)}"
    return values, sources


def read_file(path: Path, kind: type) -> dict[str, Any]:
    """Read settings from a TOML file: `name = value` lines, the names as in the class.

    Raises:
        UsageError: the file cannot be read, or holds an unknown name or a value that is not allowed.
    """
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, too many digits
        raise UsageError(f"--config {path} cannot be read: {error}") from error
    known = declared(kind)
    _refuse_unknown(f"--config {path}:", given, known)
    return {name: checked(f"--config {path}: {name}", value, known[name]) for name, value in given.items()}


def read_environment(environment: Mapping[str, str], prefix: str, kind: type) -> dict[str, Any]:
    """Read settings from environment variables, named by the prefix and the setting's name in capitals.

    Raises:
        UsageError: a variable with the prefix and an unknown name, or a value that is not allowed.
    """
    known = declared(kind)
    given = {name: text for name, text in environment.items() if name.startswith(prefix)}
    variables = {f"{prefix}{name.upper()}": name for name in known}
    _refuse_unknown("the environment:", given, variables)
    return {
        variables[variable]: checked(
            variable, _parsed(text, known[variables[variable]]), known[variables[variable]]
        )
        for variable, text in given.items()
    }


def unknown_names(place: str, given: Collection[str], known: Collection[str]) -> str | None:
    """Return an error text about unknown names, with the nearest known ones; None where all are known."""
    unknown = sorted(set(given) - set(known))
    if not unknown:
        return None
    advice = "".join(
        f" Did you mean {near[0]} for {name}?"
        for name in unknown
        if (near := difflib.get_close_matches(name, known, n=1))
    )
    return f"{place} unknown {', '.join(unknown)}; known are {', '.join(known)}.{advice}"


def _refuse_unknown(place: str, given: Collection[str], known: Collection[str]) -> None:
    problem = unknown_names(place, given, known)
    if problem:
        raise UsageError(problem)


def _parsed(text: str, item: Declared) -> Any:
    """Return the value of a variable's text; the text itself where it cannot be parsed."""
    try:
        if bool in item.types:
            return _WORDS_FOR_BOOL.get(text.lower(), text)
        if int in item.types:
            return int(text)
        if float in item.types:
            return float(text)
    except ValueError:
        pass
    return text


def checked(label: str, value: Any, item: Declared) -> Any:
    """Check a value of a file or a variable, and return it in the setting's type.

    Args:
        label: Name of the setting in an error.
        value: A TOML or JSON value.
        item: The setting.

    Raises:
        UsageError: the value has another type, or is out of its bounds.
    """
    (kind, *_) = item.types
    if issubclass(kind, Enum):
        choices = [str(each.value) for each in kind]
        if value not in choices:
            raise UsageError(f"{label} is {shown(value)}; choose one of {', '.join(choices)}.")
        return kind(value)
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    fits = isinstance(value, (*item.types, int)) if float in item.types else isinstance(value, item.types)
    if not fits or (isinstance(value, bool) and bool not in item.types):
        wanted = " or ".join("text" if issubclass(each, Path) else each.__name__ for each in item.types)
        raise UsageError(f"{label} is {shown(value)}; it must be of type {wanted}.")
    check_value(label, value, item.field)
    return value
