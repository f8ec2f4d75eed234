"""Links of the page: every state survives its link, and actions change it."""

from dataclasses import fields
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from re4.common.errors import RequestError, UsageError
from re4.inspector.state import PageState, filters_of, read_state, split_ids

words = st.text(min_size=1, max_size=8).map(str.strip).filter(bool)
STATES = st.builds(
    PageState,
    **{
        each.name: {
            "str": words | st.just(""),
            "int": st.integers(0, 999),
            "float": st.sampled_from([0.0, 0.25, 4.0]),
            "bool": st.booleans(),
        }.get(
            str(each.type).removeprefix("<class '").removesuffix("'>"), st.lists(words, max_size=3).map(tuple)
        )
        for each in fields(PageState)
    },
)


def read(query: str) -> PageState:
    return read_state(parse_qsl(query))[0]


@settings(max_examples=25)
@given(state=STATES)
def test_a_link_reproduces_the_state(state: PageState) -> None:
    assert read(state.query()) == state
    assert (state.link() == "/") == (state == PageState())


@pytest.mark.parametrize(
    ("action", "changed"),
    [
        ("add=c", {"history": ("a", "b", "c")}),
        ("remove=0", {"history": ("b",)}),
        ("remove=7", {}),
        ("paste=c%2Cd", {"history": ("a", "b", "c", "d")}),
        ("exclude=z", {"excluded": ("x", "z")}),
        ("exclude=x", {}),
        ("allow=x", {"excluded": ()}),
        ("filter-name=year&filter-value=1990,1991", {"filters": ("year=1990,1991",)}),
        ("filter-name=year&filter-value=1990&filter-kind=drop", {"filters": ("-year=1990",)}),
        ("filter-name=year&filter-value=%3E%3D1990", {"filters": ("year>=1990",)}),
        ("filter-name=year&filter-value=", {}),
        ("clear=1", {"history": (), "excluded": ()}),
    ],
)
def test_actions_change_the_state_and_leave_no_trace(action: str, changed: dict[str, object]) -> None:
    state, has_acted = read_state(parse_qsl(f"h=a&h=b&x=x&{action}", keep_blank_values=True))
    assert has_acted
    assert state == read(PageState(history=("a", "b"), excluded=("x",)).query(**changed))


def test_filters_are_conditions() -> None:
    keep, bound, drop = filters_of(PageState(filters=("genre=a, b", "-year=1990", "year>=1980")))
    assert (bound.attribute, bound.at_least, bound.drop) == ("year", "1980", False)
    assert (keep.attribute, list(keep.values), keep.drop) == ("genre", ["a", "b"], False)
    assert (drop.attribute, list(drop.values), drop.drop) == ("year", ["1990"], True)
    with pytest.raises(UsageError, match="'genre': give an attribute and its values"):
        filters_of(PageState(filters=("genre",)))


def test_pasted_ids_are_lines_or_words() -> None:
    assert split_ids(" a, b,c \n") == ["a", "b", "c"]
    assert split_ids("a, b\nc,\n\n d") == ["a, b", "c", "d"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("n=many", "n is 'many'; it must be a whole number"),
        ("effort=much", "effort is 'much'; it must be a number"),
        ("colour=red", "unknown parameter 'colour'"),
        ("&".join(["h=1"] * 2_001), "h has 2001 ids; a link may have 2000"),
    ],
)
def test_wrong_links_are_explained(query: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_state(parse_qsl(query))
