"""One answer of a source, with all that a page shows of it.

Legend: K interests, L history length, P points of the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.common.errors import RequestError
from re4.inspector.projection import Projection, project
from re4.inspector.sources import Source
from re4.inspector.state import PageState, filters_of
from re4.inspector.words import cosines_of, describe_interests
from re4.serving.client.catalogue_values import CatalogueItem
from re4.serving.client.hints import hints_about
from re4.serving.client.values import Candidates, RetrieveOptions

NUM_OWN: Final = 8
"""Own candidates of each interest."""
_NUM_ATTENDED: Final = 6
"""History items shown for each interest."""
_NUM_REASONS: Final = 2
_NUM_ON_MAP: Final = 40
"""Candidates on the map."""
_MAP_MARGIN: Final = 0.1
STAGES: Final = {
    "queue_us": "waiting for a batch",
    "gather_us": "reading the history's vectors",
    "encode_us": "encoder",
    "search_us": "search",
    "merge_us": "merging",
}


@dataclass(frozen=True, kw_only=True)
class ShownItem:
    """An item as a list shows it."""

    item_id: str
    title: str
    """The id where the catalogue has no title."""
    values: str
    """Its values of the attributes that are shown."""
    is_later: bool = False
    """Whether the held-out user chose it later."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A place of the merged list."""

    item: ShownItem
    place: int
    score: float
    interest: int
    is_new: bool
    because: str
    """The history items behind it, in words."""


@dataclass(frozen=True, kw_only=True)
class Attended:
    """A history item that an interest attends to."""

    item: ShownItem
    share: float


@dataclass(frozen=True, kw_only=True)
class OwnCandidate:
    """A candidate of one interest alone."""

    item: ShownItem
    score: float
    place: int | None
    """Its place in the merged list; None where it is not there."""


@dataclass(frozen=True, kw_only=True)
class InterestColumn:
    """What one interest attends to, and what it finds."""

    number: int
    attended: list[Attended]
    other_share: float
    """Attention to the other history items."""
    own: list[OwnCandidate]
    num_places: int
    """Places of the merged list that it found."""


@dataclass(frozen=True, kw_only=True)
class MapPoint:
    """A point of the map; coordinates from -1 to 1."""

    kind: str
    """`history`, `candidate` or `interest`."""
    x: float
    y: float
    interest: int
    """Of an interest, its number; of a candidate, the interest that found it; -1 for history."""
    label: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, ready to be shown."""

    version: str
    candidates: list[Candidate]
    columns: list[InterestColumn]
    cosines: list[list[float]]
    sentences: list[str]
    """About the interests, in words."""
    points: list[MapPoint]
    map_box: str
    """The part of the map that has points, as an SVG viewBox."""
    shown_share: float
    """Share of the variance that the map shows."""
    stages: list[tuple[str, int]]
    """Names and microseconds of the stages."""
    round_trip_ms: float
    num_unknown: int
    is_popularity_fallback: bool
    is_history_missing: bool
    notes: list[str] = field(default_factory=list)
    """Hints about values that no item has."""
    num_later: int = 0
    """Later items of the held-out user."""
    num_found: int = 0
    """Of those, the ones in the list."""


class Shelf:
    """Items of one source by id, fetched together and shown with the chosen attributes."""

    def __init__(
        self, source: Source, shown: Sequence[str], later: Sequence[Any], max_num_items: int
    ) -> None:
        self._source = source
        self._shown = shown
        self._later = set(later)
        self._max_num_items = max_num_items
        self._items: dict[Any, CatalogueItem] = {}

    def fetch(self, ids: Sequence[Any], *, return_vectors: bool = False) -> None:
        """Get items that are not there yet."""
        missing = [id_ for id_ in dict.fromkeys(ids) if id_ not in self._items]
        for start in range(0, len(missing), self._max_num_items):
            part = missing[start : start + self._max_num_items]
            found = self._source.get_items(part, return_vectors=return_vectors)
            self._items.update(zip(part, found, strict=True))

    def item(self, id_: Any) -> ShownItem:
        """Return a fetched item."""
        found = self._items[id_]
        values = [", ".join(found.attributes[name]) for name in self._shown if name in found.attributes]
        marks = [
            *([] if found.is_known else ["unknown to this version"]),
            *(["hidden"] if found.is_hidden else []),
            *(["live"] if found.is_live else []),
        ]
        return ShownItem(
            item_id=str(id_),
            title=found.title or str(id_),
            values=" · ".join([*values, *marks]),
            is_later=id_ in self._later,
        )

    def vector(self, id_: Any) -> NDArray[np.float32] | None:
        """Return the vector of an item that was fetched with vectors."""
        return self._items[id_].vector


def options_of(state: PageState, policy: str) -> RetrieveOptions:
    """Return the options of a request."""
    options = RetrieveOptions(
        exclude_history=not state.keeps_history,
        merge_policy=policy or None,
        filters=filters_of(state),
        search_effort=state.effort,
        num_new_items=state.num_new,
    )
    if policy == "category-diversity":
        options["diversity"] = state.diversity
        options["diversity_attribute"] = state.category
    return options


def typed_ids(ids: Sequence[str], kind: str) -> list[Any]:
    """Return ids in the catalogue's kind.

    Raises:
        RequestError: one is no integer where the catalogue's are.
    """
    if kind == "string":
        return list(ids)
    found = []
    for id_ in ids:
        try:
            found.append(int(id_))
        except ValueError:
            raise RequestError(f"item id {id_!r:.80}: this catalogue's ids are integers") from None
    return found


def retrieve_answer(
    source: Source,
    info: Mapping[str, Any],
    state: PageState,
    history: Sequence[Any],
    *,
    later: Sequence[Any] = (),
    policy: str = "",
) -> Answer:
    """Make the calls for a view of one source.

    Args:
        source: The server or version.
        info: Its facts, as `info` returns them.
        state: The page's state.
        history: Item ids of the catalogue's kind, oldest first.
        later: Items that a held-out user chose later.
        policy: Merge policy; empty for the default one.

    Raises:
        RequestError, ServerError: a call failed.
    """
    options = options_of(state, policy)
    options["return_interests"] = True
    options["num_reasons"] = _NUM_REASONS
    excluded = typed_ids(state.excluded, info["item_id_kind"])
    began_s = perf_counter()
    found = source.retrieve(
        history,
        state.num_candidates,
        user_id=state.user,
        exclude=excluded,
        **options,
    )
    round_trip_ms = 1e3 * (perf_counter() - began_s)
    own_ids: list[Any] = []
    if found.interests is not None:
        num_own = min(int(info["max_num_candidates"]), NUM_OWN * int(info["num_interests"]))
        # In turns, each interest gets its best items that no other interest has: together they contain the
        # best items of every interest.
        in_turns = RetrieveOptions(
            exclude_history=not state.keeps_history,
            merge_policy="round-robin",
            filters=filters_of(state),
            search_effort=state.effort,
        )
        own_ids = list(
            source.retrieve(history, num_own, user_id=state.user, exclude=excluded, **in_turns).item_ids
        )
    shelf = Shelf(source, state.shown, later, int(info["max_num_candidates"]))
    attended: list[Any] = [] if found.interests is None else list(found.interests.attended_item_ids)
    shelf.fetch([*found.item_ids, *own_ids, *attended], return_vectors=True)
    candidates = _candidates(found, shelf)
    points, shown_share = list[MapPoint](), 1.0
    cosines, sentences = np.zeros((0, 0), np.float32), list[str]()
    if found.interests is not None:
        cosines = cosines_of(found.interests.vectors)
        sentences = describe_interests(cosines)
        points, shown_share = _map(found, shelf)
    wanted = set(later)
    return Answer(
        version=found.version,
        candidates=candidates,
        columns=_columns(found, own_ids, shelf, candidates),
        cosines=cosines.tolist(),
        sentences=sentences,
        points=points,
        map_box=_box(points),
        shown_share=shown_share,
        stages=[(STAGES[name], time) for name, time in found.stage_times.items() if name in STAGES],
        round_trip_ms=round_trip_ms,
        num_unknown=found.num_unknown_history_ids,
        is_popularity_fallback=found.is_popularity_fallback,
        is_history_missing=found.is_history_missing,
        notes=[] if found.item_ids else hints_about(filters_of(state), source),
        num_later=len(wanted),
        num_found=len(wanted.intersection(found.item_ids)),
    )


def _candidates(found: Candidates, shelf: Shelf) -> list[Candidate]:
    because = _because(found, shelf)
    return [
        Candidate(
            item=shelf.item(id_),
            place=place,
            score=float(score),
            interest=int(interest),
            is_new=found.is_new is not None and bool(found.is_new[place - 1]),
            because=because[int(interest)] if because else "",
        )
        for place, (id_, score, interest) in enumerate(
            zip(found.item_ids, found.scores, found.interest_index, strict=True), start=1
        )
    ]


_MIN_REASON: Final = 0.005
"""Least attention of a further reason: less would be 0 % in words."""


def _because(found: Candidates, shelf: Shelf) -> list[str]:
    """Return the reasons of each interest in words; empty where there are none."""
    if found.reasons is None:
        return []
    shelf.fetch([id_ for ids in found.reasons.item_ids for id_ in ids], return_vectors=True)
    return [
        ", ".join(
            f"{shelf.item(id_).title} ({weight:.0%})"
            for place, (id_, weight) in enumerate(zip(ids, weights, strict=True))
            if not place or weight >= _MIN_REASON
        )
        for ids, weights in zip(found.reasons.item_ids, found.reasons.weights.tolist(), strict=True)
    ]


def _columns(
    found: Candidates, own_ids: Sequence[Any], shelf: Shelf, candidates: Sequence[Candidate]
) -> list[InterestColumn]:
    if found.interests is None:
        return []
    places = {id_: place for place, id_ in enumerate(found.item_ids, start=1)}
    vectors = np.array([shelf.vector(id_) for id_ in own_ids], np.float32)
    columns = []
    for number, interest_D in enumerate(found.interests.vectors):
        shares: dict[Any, float] = {}
        for id_, share in zip(
            found.interests.attended_item_ids, found.interests.attention[number].tolist(), strict=True
        ):
            shares[id_] = shares.get(id_, 0.0) + share
        in_order = sorted(shares, key=lambda id_: -shares[id_])
        top = in_order[:_NUM_ATTENDED]
        scores = vectors @ interest_D if len(own_ids) else np.empty(0, np.float32)
        best = islice(np.argsort(-scores, kind="stable").tolist(), NUM_OWN)
        columns.append(
            InterestColumn(
                number=number,
                attended=[Attended(item=shelf.item(id_), share=shares[id_]) for id_ in top],
                other_share=max(0.0, sum(shares[id_] for id_ in in_order[_NUM_ATTENDED:])),
                own=[
                    OwnCandidate(
                        item=shelf.item(own_ids[at]), score=float(scores[at]), place=places.get(own_ids[at])
                    )
                    for at in best
                ],
                num_places=sum(candidate.interest == number for candidate in candidates),
            )
        )
    return columns


def _box(points: Sequence[MapPoint]) -> str:
    """Return the viewBox around all points, at least half as high as it is wide."""
    if not points:
        return "-1 -1 2 2"
    (left, right), (low, high) = (
        (min(values) - _MAP_MARGIN, max(values) + _MAP_MARGIN)
        for values in ([point.x for point in points], [-point.y for point in points])
    )
    height = max(high - low, (right - left) / 2)
    return f"{left:.3f} {(low + high - height) / 2:.3f} {right - left:.3f} {height:.3f}"


def _map(found: Candidates, shelf: Shelf) -> tuple[list[MapPoint], float]:
    """Return the points of history, candidates and interests, and the share of variance that they show."""
    assert found.interests is not None
    history = list(dict.fromkeys(found.interests.attended_item_ids))
    listed = list(zip(found.item_ids, found.interest_index.tolist(), strict=True))[:_NUM_ON_MAP]
    named = [
        *(("history", id_, -1) for id_ in history),
        *(("candidate", id_, interest) for id_, interest in listed),
    ]
    vectors = [shelf.vector(id_) for _, id_, _ in named]
    known = [place for place, vector in enumerate(vectors) if vector is not None]
    projection: Projection = project(
        np.array([*(vectors[place] for place in known), *found.interests.vectors], np.float32)
    )
    labels = [
        *((named[place][0], shelf.item(named[place][1]).title, named[place][2]) for place in known),
        *(("interest", f"interest {number}", number) for number in range(len(found.interests.vectors))),
    ]
    points = [
        MapPoint(kind=kind, x=float(x), y=float(y), interest=interest, label=label)
        for (kind, label, interest), (x, y) in zip(labels, projection.points_P2, strict=True)
    ]
    return points, projection.shown_share
