"""Two lists side by side: what moved."""

from collections.abc import Sequence
from dataclasses import dataclass

from re4.common.console import number_of
from re4.inspector.answer import Answer, Candidate


@dataclass(frozen=True, kw_only=True)
class Row:
    """A place of both lists; None where one is shorter."""

    one: Candidate | None
    other: Candidate | None
    one_move: str
    """Where the item of the one list is in the other, in words."""
    other_move: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two lists and their differences."""

    rows: list[Row]
    sentences: list[str]


def compare(one: Answer, other: Answer) -> Comparison:
    """Compare the merged lists of two answers."""
    places, other_places = _places(one.candidates), _places(other.candidates)
    depth = max(len(one.candidates), len(other.candidates))
    rows = []
    for at in range(depth):
        first = one.candidates[at] if at < len(one.candidates) else None
        second = other.candidates[at] if at < len(other.candidates) else None
        rows.append(
            Row(
                one=first,
                other=second,
                one_move="" if first is None or first.item.item_id in other_places else "only here",
                other_move="" if second is None else _move(places.get(second.item.item_id), second.place),
            )
        )
    return Comparison(rows=rows, sentences=_sentences(one, other, places, other_places))


def _places(candidates: Sequence[Candidate]) -> dict[str, int]:
    return {candidate.item.item_id: candidate.place for candidate in candidates}


def _move(before: int | None, now: int) -> str:
    if before is None:
        return "only here"
    if before == now:
        return ""
    return f"{'up' if now < before else 'down'} {abs(now - before)} from {before}"


def _sentences(one: Answer, other: Answer, places: dict[str, int], other_places: dict[str, int]) -> list[str]:
    common = places.keys() & other_places.keys()
    if places == other_places:
        sentences = [f"Both lists are equal: {number_of(len(places), 'candidate')} at the same places."]
    else:
        num_same = sum(places[id_] == other_places[id_] for id_ in common)
        longest = max(len(places), len(other_places))
        sentences = [
            f"{len(common)} of {longest} candidates are in both lists, {num_same} of them at the same place."
        ]
        if common:
            farthest = max(sorted(common), key=lambda id_: abs(places[id_] - other_places[id_]))
            title = next(each.item.title for each in one.candidates if each.item.item_id == farthest)
            if places[farthest] != other_places[farthest]:
                sentences.append(
                    f"The largest move is that of {title}: from place {places[farthest]} to "
                    f"{other_places[farthest]}."
                )
    if one.num_later:
        sentences.append(
            f"Of the {number_of(one.num_later, 'item')} that the user chose later, {one.num_found} are in "
            f"the first list and {other.num_found} in the second."
        )
    if one.version != other.version:
        sentences.append(
            "The numbers of interests belong to each version: interest 0 of one is not that of the other."
        )
    return sentences
