"""The state of a page: all that its link says. Reading, changing and writing of query strings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

from re4.common.errors import RequestError
from re4.serving.client.request_options import filters_of as command_filters
from re4.serving.client.values import AttributeFilter

Pairs = Sequence[tuple[str, str]]
"""Names and values of a query string, in order."""

DEFAULT_NUM_CANDIDATES: Final = 20
_MAX_IDS: Final = 2_000
"""Ids of a link: it must stay short enough for browsers."""


@dataclass(frozen=True, kw_only=True)
class PageState:
    """What a page shows. Each field is a parameter of the link; empty ones are left out."""

    source: str = ""
    """Key of the source; empty for the first one."""
    other: str = ""
    """Key of the source to compare with; empty for none."""
    history: tuple[str, ...] = ()
    """Item ids, oldest first."""
    user: str = ""
    """Id of a user whose stored events come first."""
    held_out: str = ""
    """Held-out user of the data set, or example of the version; empty for none."""
    excluded: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    """As of `re4 retrieve --filter`, with a leading `-` as of `--drop`."""
    num_candidates: int = DEFAULT_NUM_CANDIDATES
    policy: str = ""
    """Empty for that of the server."""
    other_policy: str = ""
    """Policy of the other list; empty for the same."""
    diversity: float = 0.0
    category: str = ""
    effort: float = 0.0
    num_new: int = 0
    keeps_history: bool = False
    """Whether items of the history may be candidates."""
    shown: tuple[str, ...] = ()
    """Attributes that lists show."""
    search: str = ""
    search_attribute: str = ""
    search_value: str = ""

    @property
    def has_user(self) -> bool:
        """Whether there is anybody to retrieve for."""
        return bool(self.history or self.user or self.held_out)

    @property
    def searches(self) -> bool:
        """Whether the catalogue is searched."""
        return bool(self.search or (self.search_attribute and self.search_value))

    def query(self, **changes: object) -> str:
        """Return the query string of this state, with some fields changed."""
        state = replace(self, **changes)  # type: ignore[arg-type]  # names and types of fields
        default = PageState()
        pairs: list[tuple[str, str]] = []
        for field, name in _NAMES.items():
            value = getattr(state, field)
            if value == getattr(default, field):
                continue
            if isinstance(value, tuple):
                pairs += [(name, each) for each in value]
            else:
                pairs.append(
                    (name, "1" if value is True else f"{value:g}" if isinstance(value, float) else str(value))
                )
        return urlencode(pairs)

    def link(self, **changes: object) -> str:
        """Return the link of this state, with some fields changed."""
        query = self.query(**changes)
        return f"/?{query}" if query else "/"


_NAMES: Final = {
    "source": "source",
    "other": "compare",
    "history": "h",
    "user": "user",
    "held_out": "held-out",
    "excluded": "x",
    "filters": "f",
    "num_candidates": "n",
    "policy": "merge",
    "other_policy": "compare-merge",
    "diversity": "diversity",
    "category": "category",
    "effort": "effort",
    "num_new": "new-items",
    "keeps_history": "keep-history",
    "shown": "show",
    "search": "q",
    "search_attribute": "q-name",
    "search_value": "q-value",
}
"""The parameter of each field."""

_ACTIONS: Final = frozenset({"add", "add-all", "remove", "clear", "exclude", "allow", "paste", "filter-name",
                             "filter-value", "filter-kind", "unfilter"})  # fmt: skip
"""Parameters of forms and buttons that change the state; a link never holds them."""


def read_state(pairs: Pairs) -> tuple[PageState, bool]:
    """Return the state of a query string, and whether an action changed it.

    Raises:
        RequestError: a parameter is unknown or has a wrong value; the message names it.
    """
    fields: dict[str, object] = {}
    by_name = {name: field for field, name in _NAMES.items()}
    default = PageState()
    for name, value in pairs:
        if name in _ACTIONS:
            continue
        if name not in by_name:
            raise RequestError(f"the link has an unknown parameter {name!r:.80}")
        field = by_name[name]
        before = getattr(default, field)
        if isinstance(before, tuple):
            fields[field] = (*fields.get(field, ()), value)  # type: ignore[misc]
        elif isinstance(before, bool):
            fields[field] = value == "1"
        elif isinstance(before, int | float):
            fields[field] = _number(name, value, type(before)) if value.strip() else before
        else:
            fields[field] = value.strip()
    state = PageState(**fields)  # type: ignore[arg-type]
    changed = _acted(state, pairs)
    for name, ids in (("h", changed.history), ("x", changed.excluded)):
        if len(ids) > _MAX_IDS:
            raise RequestError(f"{name} has {len(ids)} ids; a link may have {_MAX_IDS}")
    return changed, any(name in _ACTIONS for name, _ in pairs)


def filters_of(state: PageState) -> list[AttributeFilter]:
    """Return the filters of a state.

    Raises:
        UsageError: one names no attribute, or neither values nor a bound.
    """
    return command_filters(
        [text for text in state.filters if not text.startswith("-")],
        [text.removeprefix("-") for text in state.filters if text.startswith("-")],
    )


def search_filters(state: PageState) -> list[AttributeFilter]:
    """Return the condition of the search for items."""
    if not state.search_attribute or not state.search_value:
        return []
    return command_filters([_condition(state.search_attribute, state.search_value)], [])


def _condition(name: str, value: str) -> str:
    """Return the condition of an attribute and its values or its bound, such as `>=1990`."""
    value = value.strip()
    return f"{name}{value}" if value.startswith(("<", ">", "=")) else f"{name}={value}"


def split_ids(text: str) -> list[str]:
    """Return pasted ids: one a line, or else separated by commas."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        return [word.strip() for word in lines[0].split(",") if word.strip()]
    return [line.rstrip(",") for line in lines]


def _acted(state: PageState, pairs: Pairs) -> PageState:
    """Return the state after the actions of a form or button."""
    actions = {name: value for name, value in pairs if name in _ACTIONS and value}
    history = [*state.history, *split_ids(actions.get("paste", ""))]
    if "add" in actions:
        history.append(actions["add"])
    if "remove" in actions:
        place = int(_number("remove", actions["remove"], int))
        if 0 <= place < len(history):
            del history[place]
    excluded = [*state.excluded]
    if "exclude" in actions and actions["exclude"] not in excluded:
        excluded.append(actions["exclude"])
    if "allow" in actions:
        excluded = [id_ for id_ in excluded if id_ != actions["allow"]]
    filters = [*state.filters]
    if actions.get("filter-value") and actions.get("filter-name"):
        sign = "-" if actions.get("filter-kind") == "drop" else ""
        added = sign + _condition(actions["filter-name"], actions["filter-value"])
        filters = [*(text for text in filters if text != added), added]
    if "unfilter" in actions:
        filters = [text for text in filters if text != actions["unfilter"]]
    changed = replace(state, history=tuple(history), excluded=tuple(excluded), filters=tuple(filters))
    if "clear" in actions:
        changed = replace(changed, history=(), user="", held_out="", excluded=())
    return changed


def _number(name: str, text: str, kind: type) -> int | float:
    try:
        number: int | float = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name} is {text!r:.40}; it must be {what}") from None
    return number
