"""Is a version good enough to go live? One question a gate, each with a figure and the bounds it must keep.

Measured on the files as they were written, not on what was in memory. All gates are asked, whatever the first
ones say. Those that compare with the live version are left out where there is none.

Legend: Q queries, K interests, D embedding, M candidates, N items, S sampled items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.exact_search import exact_thresholds, merged_recall, reaches
from re4.bundle.layout import INDEX, VECTORS
from re4.common.errors import GateError, UsageError
from re4.exporting.assemble import Assembled
from re4.exporting.catalogue.histories import spread
from re4.exporting.index.build import BuiltIndex
from re4.exporting.index.tuning import Goal
from re4.exporting.rebuild.drift import SharedRequests
from re4.exporting.sources.published_version import PublishedVersion, answers, open_index
from re4.exporting.storage.mapped_vectors import pieces, rows_of

_MAX_SAMPLED_ITEMS: Final = 2_000
_MIN_SAMPLED_ITEMS: Final = 200
_MAX_COMPARISONS: Final = 4_000_000_000
"""Sampled items times items compared, while that leaves `_MIN_SAMPLED_ITEMS`."""
_SIZED: Final = (INDEX, VECTORS)
_GOLDEN_SLACK: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a version must keep to be published."""

    min_golden_recall: float | None = None
    """Share of the golden queries' exact candidates that the index finds; None for 0.05 below the goal."""
    min_reachable: float = 0.9
    """Of the items that exact search finds by their own vector, the share that the index finds so too."""
    min_uncrowded: float = 0.8
    """Share of items that exact search finds by their own vector, as a multiple of the live version's."""
    min_overlap: float = 0.2
    """Share of the live version's answers to real queries that the new version gives too."""
    min_agreement: float = 0.9
    """Median cosine between vectors made elsewhere and those that the encoder's version has for the items."""
    min_items_ratio: float = 0.8
    """Number of items, as a multiple of the live version's."""
    max_items_ratio: float = 1.25
    min_bytes_ratio: float = 0.5
    """Bytes an item of index and vectors, as a multiple of the live version's."""
    max_bytes_ratio: float = 2.0

    def __post_init__(self) -> None:
        """Refuse bounds that nothing or everything keeps.

        Raises:
            UsageError: naming the option.
        """
        for name in ("min_golden_recall", "min_reachable", "min_overlap", "min_agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{_option(name)} is {value:g}; it must be from 0 (not asked) to 1")
        for name in ("min_uncrowded", "min_items_ratio", "min_bytes_ratio"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UsageError(
                    f"{_option(name)} is {getattr(self, name):g}; it must be 0 (not asked) or more"
                )
        for low, high in (("min_items_ratio", "max_items_ratio"), ("min_bytes_ratio", "max_bytes_ratio")):
            if not getattr(self, high) > getattr(self, low):
                raise UsageError(
                    f"{_option(high)} is {getattr(self, high):g}; it must be more than {_option(low)}, "
                    f"{getattr(self, low):g}"
                )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What one gate found."""

    name: str
    figure: float
    low: float | None = None
    """The figure must be at least this."""
    high: float | None = None
    """The figure must be at most this."""
    meaning: str
    """The figure in words, for who has to decide what to do."""
    advice: str
    """What to look at where it failed."""

    @property
    def passed(self) -> bool:
        """Whether the figure keeps its bounds."""
        at_least = self.low is None or self.figure >= self.low
        return at_least and (self.high is None or self.figure <= self.high)

    @property
    def bounds(self) -> str:
        """What is allowed, in words."""
        low = "" if self.low is None else f"at least {self.low:.4g}"
        high = "" if self.high is None else f"at most {self.high:.4g}"
        return " and ".join(part for part in (low, high) if part) or "anything"


def refuse_failed(results: Sequence[GateResult]) -> None:
    """Stop where a gate failed.

    Raises:
        GateError: naming every gate that failed, with its figure and bounds.
    """
    failed = [result for result in results if not result.passed]
    if failed:
        raise GateError(
            "nothing was published: "
            + "; ".join(
                f"gate {result.name}: {result.meaning} is {result.figure:.4g}, {result.bounds} is allowed "
                f"({result.advice})"
                for result in failed
            )
        )


def judge(
    assembled: Assembled, folder: Path, live: PublishedVersion | None, *, bounds: Bounds, goal: Goal
) -> Iterator[GateResult]:
    """Ask every gate about a version whose files are written.

    Args:
        assembled: The version.
        folder: Its files.
        live: The version that it would replace; None where there is none.
        bounds: What it must keep.
        goal: What its index was tuned to.
    """
    built = open_index(folder / INDEX, assembled.index)
    yield _recall(assembled, built, goal)
    yield _golden(assembled, built, bounds, goal)
    material = assembled.material
    numbers_S = spread(material.num_trained, _num_sampled(len(material.vectors_ND)))
    sample_S = material.trained_rows(numbers_S)
    is_found_exactly_S, is_found_S = _reached(assembled, built, sample_S, goal.num_candidates)
    yield _reachable(is_found_exactly_S, is_found_S, bounds)
    if live is None:
        return
    shared = SharedRequests.of(assembled, folder, live)
    ours_QM = shared.answers_of(assembled, built, goal)
    del built  # so that one index at a time is in memory
    yield _uncrowded(is_found_exactly_S, live, bounds, goal)
    yield _drift(shared, ours_QM, live, bounds, goal)
    yield from _sizes(assembled, folder, live, bounds)


def _recall(assembled: Assembled, built: BuiltIndex, goal: Goal) -> GateResult:
    """As a caller meets it, on the half of the held-out histories that judged the settings in tuning."""
    interests_QKD = assembled.interests_QKD
    judging = interests_QKD[1::2] if len(interests_QKD) > 1 else interests_QKD
    num_candidates = min(goal.num_candidates, assembled.items.num_items)
    figure = _found(assembled, built, judging, num_candidates)
    return GateResult(
        name="recall",
        figure=figure,
        low=goal.recall,
        meaning=f"share of the exact {num_candidates} candidates found, over {len(judging)} real requests",
        advice="see frontier.png of the live version; choose another --index, or a lower --recall",
    )


def _golden(assembled: Assembled, built: BuiltIndex, bounds: Bounds, goal: Goal) -> GateResult:
    golden = assembled.golden
    low = bounds.min_golden_recall
    return GateResult(
        name="golden",
        figure=_found(assembled, built, golden.interests_QKD, golden.candidate_rows_QM.shape[1]),
        low=max(0.0, goal.recall - _GOLDEN_SLACK) if low is None else low,
        meaning=f"share of the exact answers to {len(golden.interests_QKD)} golden queries found",
        advice="the index misses what servers will ask it for: another --index or a higher --recall",
    )


def _found(
    assembled: Assembled, built: BuiltIndex, interests_QKD: NDArray[np.float32], num_candidates: int
) -> float:
    vectors_ND = assembled.material.vectors_ND
    rows_QM = answers(built, assembled.index, interests_QKD, vectors_ND, num_candidates)
    thresholds_Q = exact_thresholds(interests_QKD, vectors_ND, num_candidates, read_chunks=pieces)
    return merged_recall(interests_QKD, vectors_ND, rows_QM, thresholds_Q)


def _num_sampled(num_items: int) -> int:
    return max(_MIN_SAMPLED_ITEMS, min(_MAX_SAMPLED_ITEMS, _MAX_COMPARISONS // num_items))


def _reached(
    assembled: Assembled, built: BuiltIndex, sample_S: NDArray[np.int64], num_candidates: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether exact search, and whether the index, finds items among the nearest to their own vector."""
    vectors_ND = assembled.material.vectors_ND
    vectors_SD = rows_of(vectors_ND, sample_S)
    rows_SM = answers(built, assembled.index, vectors_SD[:, None, :], vectors_ND, num_candidates)
    is_found_S = (rows_SM == sample_S[:, None]).any(axis=1)
    return is_found_S | _exactly_reached(vectors_SD, vectors_ND, num_candidates), is_found_S


def _exactly_reached(
    vectors_SD: NDArray[np.float32], vectors_ND: NDArray[np.float32], num_candidates: int
) -> NDArray[np.bool_]:
    own_S = np.einsum("sd,sd->s", vectors_SD, vectors_SD)
    last_S = exact_thresholds(vectors_SD[:, None, :], vectors_ND, num_candidates, read_chunks=pieces)
    return np.asarray(reaches(own_S, last_S) & (own_S > 0))


def _reachable(
    is_found_exactly_S: NDArray[np.bool_], is_found_S: NDArray[np.bool_], bounds: Bounds
) -> GateResult:
    num_exact = int(is_found_exactly_S.sum())
    return GateResult(
        name="reachable",
        figure=float(is_found_S.sum() / num_exact) if num_exact else 0.0,
        low=bounds.min_reachable,
        meaning=f"share that the index finds of {num_exact} items that exact search finds by their vector",
        advice="parts of the index cannot be reached: another --index",
    )


def _uncrowded(
    is_found_exactly_S: NDArray[np.bool_], live: PublishedVersion, bounds: Bounds, goal: Goal
) -> GateResult:
    trained = np.flatnonzero(~live.is_cold_N())
    sample_SD = rows_of(live.vectors_ND, trained[spread(len(trained), _num_sampled(len(live.vectors_ND)))])
    before = float(_exactly_reached(sample_SD, live.vectors_ND, goal.num_candidates).mean())
    now = float(is_found_exactly_S.mean())
    return GateResult(
        name="uncrowded",
        figure=now,
        low=bounds.min_uncrowded * before,
        meaning=f"share of items that exact search finds by their own vector (live version: {before:.4g})",
        advice="few vectors crowd the others out, or many are alike: look at the training",
    )


def _drift(
    shared: SharedRequests,
    ours_QM: NDArray[np.int64],
    live: PublishedVersion,
    bounds: Bounds,
    goal: Goal,
) -> GateResult:
    """Overlap of the two versions' answers to the same histories, among the items that both have."""
    return GateResult(
        name="drift",
        figure=shared.overlap(ours_QM, live, goal),
        low=bounds.min_overlap,
        meaning=(
            f"share of the live version's answers given again, over {len(shared.rows_QL)} real requests "
            "whose histories both versions know"
        ),
        advice="the model or the catalogue changed much: if that is meant, lower --min-overlap for this once",
    )


def _sizes(
    assembled: Assembled, folder: Path, live: PublishedVersion, bounds: Bounds
) -> Iterator[GateResult]:
    num_items, before = assembled.items.num_items, live.manifest.items.num_items
    yield GateResult(
        name="count",
        figure=num_items / before,
        low=bounds.min_items_ratio,
        high=bounds.max_items_ratio,
        meaning=f"number of items, {num_items:,}, as a multiple of the live version's {before:,}",
        advice="is the catalogue complete? If that is meant, widen --min-items-ratio or --max-items-ratio",
    )
    each = sum((folder / name).stat().st_size for name in _SIZED) / num_items
    each_before = sum(entry.num_bytes for entry in live.manifest.files if entry.name in _SIZED) / before
    yield GateResult(
        name="size",
        figure=each / each_before,
        low=bounds.min_bytes_ratio,
        high=bounds.max_bytes_ratio,
        meaning=f"bytes an item of index and vectors, {each:,.0f}, as a multiple of the live version's",
        advice="another index kind or width? If that is meant, widen --min-bytes-ratio or --max-bytes-ratio",
    )
