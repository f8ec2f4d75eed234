"""Options of the subcommands that ask for candidates. Imports nothing of gRPC."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from re4.common.errors import UsageError

if TYPE_CHECKING:
    from re4.serving.client.values import AttributeFilter

NumCandidates = Annotated[int, typer.Option(help="Number of candidates.")]
ExcludeHistory = Annotated[
    bool, typer.Option("--exclude-history/--keep-history", help="Leave out the items of the history.")
]
_MERGE = (
    "How to merge the lists of the interests: max-score, equal-quota, attention-quota, round-robin, "
    "soft-quota, category-diversity. Default: "
)
Merge = Annotated[
    str | None,
    typer.Option(help=_MERGE + "that of the server, or max-score.", show_default=False),
]
MergeHere = Annotated[str | None, typer.Option("--merge", help=_MERGE + "max-score.", show_default=False)]
"""Where no server is asked."""
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="NAME=VALUE,…",
        help="Only items with one of these values of an attribute, or in a range of numbers or dates: "
        "NAME<50, NAME>=2026-01-01. `re4 info` lists the attributes. Give it again for a further condition.",
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE,…",
        help="Leave out items with one of these values, or in this range. Give it again for a further "
        "condition.",
    ),
]
Diversity = Annotated[
    float,
    typer.Option(
        help="With --merge category-diversity: score that a candidate gains for each candidate before it "
        "that is of another category."
    ),
]
DiversityAttribute = Annotated[
    str, typer.Option(help="With --merge category-diversity: the attribute that is the category.")
]
SearchEffort = Annotated[
    float,
    typer.Option(help="Search effort of an approximate index, as a multiple of its tuned setting; 0 for 1."),
]
NewItems = Annotated[
    int,
    typer.Option(
        help="Exploration quota: at most this number of candidates are items that no training has seen, "
        "whatever their scores; 0 for no quota."
    ),
]


def filters_of(keep: list[str] | None, drop: list[str] | None) -> "list[AttributeFilter]":
    """Return the filters of `--filter` and `--drop`.

    Raises:
        UsageError: one names no attribute, or neither values nor a bound.
    """
    return [
        *(_filter(text, "--filter", is_drop=False) for text in keep or ()),
        *(_filter(text, "--drop", is_drop=True) for text in drop or ()),
    ]


def _filter(text: str, option: str, *, is_drop: bool) -> "AttributeFilter":
    from re4.serving.client.values import AttributeFilter

    parts = re.fullmatch(r"([^=<>]+)(<=|>=|[=<>])(.*)", text, re.DOTALL)
    if parts is None:
        raise UsageError(
            f"{option} {text!r}: give an attribute and its values, such as genre=drama,comedy, or a bound, "
            "such as 'price<50'"
        )
    name, sign, value = (part.strip() for part in parts.groups())
    if sign == "=":
        return AttributeFilter(
            attribute=name, values=[each.strip() for each in value.split(",")], drop=is_drop
        )
    bound = {"<": "below", "<=": "at_most", ">": "above", ">=": "at_least"}[sign]
    return AttributeFilter(attribute=name, drop=is_drop, **{bound: value})
