"""What the server must know about a kind of index. Knows nothing about how one is built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

MIN_APPROXIMATE_RECALL: Final = 0.5
"""The golden queries' floor for kinds that are not exact. What a version reaches is in its manifest; less
than this is an index of something else."""

_MAX_VALUE: Final = (1 << 31) - 1
_MAX_FACTOR_EFFORT: Final = 4


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How an index is searched: the parameters of every call, and the classes that they are made for."""

    parameters: Any
    """Per-call FAISS search parameters. Never set them on the index itself: that is shared state."""
    types: frozenset[str]
    """Names of the FAISS classes that they are for."""
    k_factor: float
    """Results that each interest finds for a candidate that is wanted, at least 1."""
    pool_factor: float
    """Results of all interests together that are scored by the vectors, for a candidate that is wanted."""


@dataclass(frozen=True, kw_only=True)
class IndexKind:
    """One kind of index on the allow-list."""

    name: str
    """As the manifest's `index.kind` says it."""
    signatures: frozenset[bytes]
    """The four bytes that a file of this kind may begin with."""
    faiss_types: frozenset[str]
    """Names of the FAISS classes that such a file may turn into."""
    min_golden_recall: float
    """The share of the golden queries' exact candidates that an index of this kind must find, 0 to 1."""
    search_parameters: Callable[[Mapping[str, int | float]], SearchPlan | None]
    """Makes the plan (None where there is nothing to set) of the manifest's parameters; ValueError where they
    are not this kind's."""


def one_parameter(
    name: str, types: frozenset[str], faiss_parameters: Callable[[int | float], Any]
) -> Callable[[Mapping[str, int | float]], SearchPlan]:
    """What makes the plans of a kind that FAISS searches with one parameter, and that is not exact.

    Args:
        name: The parameter, as the manifest says it.
        types: Names of the FAISS classes that it is for.
        faiss_parameters: Makes FAISS's per-call parameters of its value.
    """

    def plan(parameters: Mapping[str, int | float]) -> SearchPlan:
        only(parameters, name, "k_factor", "pool_factor")
        return SearchPlan(
            parameters=faiss_parameters(parameters[name]),
            types=types,
            k_factor=parameters["k_factor"],
            pool_factor=parameters["pool_factor"],
        )

    return plan


def scaled(parameters: Mapping[str, int | float], effort: float) -> dict[str, int | float]:
    """Search parameters times so much, each at least 1 and whole where it was: all of them buy recall.

    Factors make up for what codes lose, which a little more of them does; they do not rise without bound.
    """
    return {
        name: max(1, value * min(effort, _MAX_FACTOR_EFFORT))
        if name.endswith("_factor")
        else min(max(1, round(value * effort)), _MAX_VALUE)
        for name, value in parameters.items()
    }


def only(parameters: Mapping[str, int | float], *names: str) -> None:
    """Require exactly these parameters, each at least 1 and small; all but factors are whole numbers.

    Raises:
        ValueError: others, missing ones, or a value out of range.
    """
    if set(parameters) != set(names):
        raise ValueError(f"{', '.join(names)} are needed, found {', '.join(sorted(parameters)) or 'none'}")
    for name, value in parameters.items():
        if not 1 <= value <= _MAX_VALUE or (not name.endswith("_factor") and not isinstance(value, int)):
            raise ValueError(f"{name} is {value}, a number from 1 to {_MAX_VALUE} is needed")
