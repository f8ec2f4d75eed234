"""The content of a page for a state: the calls are made here, and problems become messages."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from threading import Lock
from typing import Any, Final

from re4.common.console import number_of
from re4.common.errors import Re4Error, RequestError, UsageError
from re4.inspector.answer import STAGES, Answer, Shelf, ShownItem, retrieve_answer, typed_ids
from re4.inspector.comparison import Comparison, compare
from re4.inspector.held_out import HeldOutUser, HeldOutUsers
from re4.inspector.sources import Source, SourceName, Sources
from re4.inspector.state import PageState, search_filters
from re4.inspector.words import age_in_words
from re4.serving.protocol.policy_names import policy_names

_NUM_FOUND: Final = 12
"""Items of a search, and of the popular ones that an empty page offers."""
_NUM_REMEMBERED: Final = 200
"""Requests whose stage times are kept for each source."""
_NUM_SHOWN_ATTRIBUTES: Final = 2
"""Attributes that lists show where the link names none."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A source of the page, with its answer or its problem."""

    name: SourceName
    info: Mapping[str, Any]
    facts: list[tuple[str, str]]
    """About what is served, in words."""
    stages: list[tuple[str, int, int]]
    """Stage, microseconds of this request, and their median over the page's requests."""
    num_requests: int
    """Requests that the medians are of."""
    answer: Answer | None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class View:
    """All that a page shows."""

    state: PageState
    names: list[SourceName]
    side: Side | None = None
    other: Side | None = None
    comparison: Comparison | None = None
    history: list[tuple[int, ShownItem]] = field(default_factory=list)
    """Items of the link with their positions."""
    held_out: HeldOutUser | None = None
    held_out_items: list[ShownItem] = field(default_factory=list)
    num_held_out: int = 0
    has_examples: bool = False
    """Whether the version has example histories."""
    excluded: list[ShownItem] = field(default_factory=list)
    found: list[ShownItem] = field(default_factory=list)
    found_title: str = ""
    policies: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    problem: str = ""


class Viewer:
    """Makes the views of one page. Threads may share it."""

    def __init__(self, sources: Sources, held_out: HeldOutUsers | None = None) -> None:
        """Take what the page looks at."""
        self.sources = sources
        self._held_out = held_out
        self._times: dict[str, deque[dict[str, int]]] = defaultdict(lambda: deque(maxlen=_NUM_REMEMBERED))
        self._lock = Lock()

    def view(self, state: PageState) -> View:
        """Return the view of a state. No error of the project leaves it: the view states the problem."""
        names = self.sources.names()
        view = View(state=state, names=names, policies=tuple(policy_names()))
        try:
            return self._view(view, state.source or names[0].key)
        except Re4Error as error:
            return replace(view, problem=str(error))

    def _view(self, view: View, key: str) -> View:
        state = view.state
        source = self.sources.open(key)
        info = source.info()
        attributes = tuple(info["attributes"])
        if not state.shown:
            state = replace(state, shown=attributes[:_NUM_SHOWN_ATTRIBUTES])
        examples = self.sources.example_history(key) if self._held_out is None else None
        view = replace(
            view,
            state=state,
            attributes=attributes,
            has_examples=examples is not None,
            num_held_out=0 if self._held_out is None else self._held_out.num_users,
        )
        view = replace(view, side=self._side(key, view, info, None))
        user = None
        if state.held_out:
            if self._held_out is not None:
                user = self._held_out.user(state.held_out)
            elif examples is not None:
                number = int(state.held_out) if state.held_out.isdigit() else -1
                user = HeldOutUser(number=number, user_id="", history=examples(number), later=[])
            else:
                raise UsageError("held-out users need a data set: start the page with --data")
        try:
            view = self._with_lists(view, source, info, user)
        except Re4Error as error:
            return replace(view, problem=str(error), held_out=user)
        if not state.has_user:
            return view
        view = replace(view, side=self._answered(key, view, source, info, user, state.policy))
        if state.other or state.other_policy:
            other_key = state.other or key
            try:
                other = self.sources.open(other_key)
                side = self._answered(
                    other_key, view, other, other.info(), user, state.other_policy or state.policy
                )
            except Re4Error as error:
                side = self._side(other_key, view, {}, None, problem=str(error))
            view = replace(view, other=side)
            assert view.side is not None
            if view.side.answer is not None and side.answer is not None:
                view = replace(view, comparison=compare(view.side.answer, side.answer))
        return view

    def _with_lists(
        self, view: View, source: Source, info: Mapping[str, Any], user: HeldOutUser | None
    ) -> View:
        """Return the view with the items of the history, of the exclusions and of the search."""
        state, kind = view.state, info["item_id_kind"]
        shelf = Shelf(
            source, state.shown, () if user is None else user.later, int(info["max_num_candidates"])
        )
        history, excluded = typed_ids(state.history, kind), typed_ids(state.excluded, kind)
        of_user = [] if user is None else user.history
        found, title = self._found(state, source, info)
        shelf.fetch([*history, *excluded, *of_user, *found])
        return replace(
            view,
            history=[(place, shelf.item(id_)) for place, id_ in enumerate(history)],
            excluded=[shelf.item(id_) for id_ in excluded],
            held_out=user,
            held_out_items=[shelf.item(id_) for id_ in of_user],
            found=[shelf.item(id_) for id_ in found],
            found_title=title,
        )

    def _found(self, state: PageState, source: Source, info: Mapping[str, Any]) -> tuple[list[Any], str]:
        filters = search_filters(state)
        if not state.searches and state.has_user:
            return [], ""
        found = list(source.find_items(state.search, filters=filters, num_items=_NUM_FOUND))
        if not state.searches:
            return found, "Popular items"
        if found:
            return found, number_of(len(found), "item") + (" or more" if len(found) == _NUM_FOUND else "")
        title = "No item is found."
        if filters:
            near = list(source.list_values(state.search_attribute, like=state.search_value, num_values=5))
            title += f" Values like it: {', '.join(near)}." if near else ""
        elif not info["has_titles"]:
            title += " The version has no titles: search by id."
        return [], title

    def _answered(
        self,
        key: str,
        view: View,
        source: Source,
        info: Mapping[str, Any],
        user: HeldOutUser | None,
        policy: str,
    ) -> Side:
        """Return a side with its answer, or with the problem of its calls."""
        try:
            history = typed_ids(view.state.history, info["item_id_kind"])
            if user is not None:
                history = [*user.history, *history]
            later = [] if user is None else user.later
            answer = retrieve_answer(source, info, view.state, history, later=later, policy=policy)
        except Re4Error as error:
            return self._side(key, view, info, None, problem=str(error))
        with self._lock:
            self._times[key].append(dict(answer.stages))
        return self._side(key, view, info, answer)

    def _side(
        self, key: str, view: View, info: Mapping[str, Any], answer: Answer | None, problem: str = ""
    ) -> Side:
        name = next((each for each in view.names if each.key == key), None)
        if name is None:
            raise RequestError(f"there is no source {key!r:.80}: choose one of the list")
        with self._lock:
            times = list(self._times[key])
        stages = [
            (stage, dict(answer.stages)[stage], int(median(each[stage] for each in times)))
            for stage in (STAGES.values() if answer is not None and answer.stages and times else ())
            if answer is not None
        ]
        return Side(
            name=name,
            info=info,
            facts=_facts(info) if info else [],
            stages=stages,
            num_requests=len(times),
            answer=answer,
            problem=problem,
        )


def _facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is served, in words."""
    facts = [
        ("version", info["version"]),
        ("age", f"made {age_in_words(info['created_at'])} ago"),
        ("model", f"{info['model']}, {number_of(info['num_interests'], 'interest')}"),
        ("index", info["index"]),
        ("recall", _recall(info["index_recall"], info["online_recall"], info["num_recall_samples"])),
        ("items", f"{info['num_items']:,}"),
        ("live items", f"{info['num_live_items']:,}"),
        ("hidden items", f"{info['num_hidden_items']:,}"),
    ]
    if info["canary_version"]:
        how = "is compared on" if info["canary_is_shadow"] else "answers"
        facts += [
            ("canary", f"{info['canary_version']} {how} {100 * info['canary_share']:g} % of the users"),
            (
                "recall of the canary",
                _recall(
                    info["canary_index_recall"],
                    info["canary_online_recall"],
                    info["num_canary_recall_samples"],
                ),
            ),
        ]
    if info["effective_interests"]:
        facts.append(("distinct interests", f"{info['effective_interests']:.1f} of {info['num_interests']}"))
    if info["history_store"]:
        facts.append(("histories", info["history_failure"] or info["history_store"]))
    if info["is_browned_out"]:
        facts.append(("brown-out", f"in use: search effort {info['brown_out_effort']:g}"))
    for what, failure in (
        (f"refused version {info['failed_version']}", info["failure"]),
        ("hidden items, failure", info["hidden_failure"]),
        ("live items, failure", info["live_failure"]),
        ("canary, failure", info["canary_failure"]),
    ):
        if failure:
            facts.append((what, failure))
    return facts


def _recall(at_export: float, online: float, num_samples: int) -> str:
    """Return the recall that was measured at export, and online on a number of answers."""
    text = (
        "exact" if at_export == 1 else f"{at_export:.3f}, measured at export" if at_export else "not measured"
    )
    return f"{text}; {online:.3f} of {num_samples:,} answers" if num_samples else text


def num_of(items: Sequence[object], noun: str) -> str:
    """Return the number of items with a noun."""
    return number_of(len(items), noun)
