"""Choosing search parameters: the fastest setting whose merged candidates reach the recall target.

The queries are real: interests of held-out histories, which lie elsewhere than item vectors do. Half of them
choose, the other half judge what was chosen: a setting that misses the target there is passed over for the
next slower one, and the recall that is reported is theirs.

Times are of searching, scoring by the vectors and merging, on one thread, as a server's worker does it:
requests in small batches. They are processor time, so that what else runs on the machine has no part in the
choice.

Legend: Q requests, K interests, D embedding, N items.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.bundle.exact_search import exact_thresholds, merged_recall
from re4.bundle.manifest import FrontierPoint, IndexInfo
from re4.common.errors import GateError
from re4.exporting.index.build import BuiltIndex
from re4.exporting.index.families import Settings
from re4.exporting.index.search import find, merge
from re4.exporting.storage.mapped_vectors import pieces

BATCH_SIZE: Final = 8
"""Requests in one search."""

_MAX_QUERIES: Final = 1000
_MIN_QUERIES: Final = 200
_MAX_COMPARISONS: Final = 4_000_000_000
"""Interests times items compared for the exact answers, while that leaves `_MIN_QUERIES`."""


_POOL_FACTORS: Final = (1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 12, 16)
"""Results looked at by the vectors, in numbers of candidates."""

_TOO_SLOW: Final = 2
"""A setting this many times slower than one that reaches the goal is not improved upon."""
_ENOUGH: Final = 3
"""Settings past the goal, or without a gain, after which a ladder is left."""
_IDLE: Final = 1e-4
"""A gain in recall below this is none."""
_STEPS_BACK: Final = 6


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What an index has to reach."""

    recall: float
    """Mean share of the exact merged candidates to find, 0 to 1."""
    num_candidates: int
    """Candidates of a request."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one setting gave."""

    settings: Settings
    recall: float
    request_us: float


class Queries:
    """Requests with their exact answers."""

    def __init__(
        self,
        interests_QKD: NDArray[np.float32],
        vectors_ND: NDArray[np.float32],
        num_candidates: int,
        thresholds_Q: NDArray[np.float32] | None = None,
    ) -> None:
        """Answer the requests exactly, unless the last exact candidates' scores are given."""
        self.interests_QKD = interests_QKD
        self.vectors_ND = vectors_ND
        self.num_candidates = min(num_candidates, len(vectors_ND))
        self._thresholds_Q = (
            exact_thresholds(interests_QKD, vectors_ND, self.num_candidates, read_chunks=pieces)
            if thresholds_Q is None
            else thresholds_Q
        )

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.interests_QKD)

    def measure(self, built: BuiltIndex, settings: Settings, *, num_threads: int = 1) -> list[Measured]:
        """Search for every request with one setting, as a server does; times are medians over batches.

        Args:
            built: The index.
            settings: With or without the `pool_factor`.
            num_threads: Of a search. Times are processor time with one thread, and elapsed with more.

        Returns:
            One figure where the setting is complete. Where it lacks the `pool_factor`, one for each that is
            worth trying, from small to large.
        """
        tried = self._complete(settings)
        found: list[list[NDArray[np.int64]]] = [[] for _ in tried]
        times_us: list[list[float]] = [[] for _ in tried]
        clock = thread_time if num_threads == 1 else perf_counter
        with _threads(num_threads):
            for start in range(0, len(self), BATCH_SIZE):
                batch_BKD = self.interests_QKD[start : start + BATCH_SIZE]
                began = clock()
                lists = find(built, settings, batch_BKD, self.num_candidates)
                search_s = clock() - began
                for number, setting in enumerate(tried):
                    began = clock()
                    rows_BM = merge(lists, setting, batch_BKD, self.vectors_ND, self.num_candidates)
                    times_us[number].append((search_s + clock() - began) * 1e6 / len(batch_BKD))
                    found[number].append(rows_BM)
        return [
            Measured(
                settings=setting,
                recall=merged_recall(
                    self.interests_QKD, self.vectors_ND, np.concatenate(found[number]), self._thresholds_Q
                ),
                request_us=float(np.median(times_us[number])),
            )
            for number, setting in enumerate(tried)
        ]

    def _complete(self, settings: Settings) -> list[Settings]:
        """The setting, or where it lacks the `pool_factor`, the setting with each."""
        if "k_factor" not in settings or "pool_factor" in settings:
            return [settings]
        most = self.interests_QKD.shape[1] * settings["k_factor"]
        factors = [factor for factor in _POOL_FACTORS if factor < most] + [most]
        return [{**settings, "pool_factor": factor} for factor in factors]


def num_queries_for(num_items: int, num_interests: int) -> int:
    """How many requests tuning can afford to answer exactly."""
    affordable = _MAX_COMPARISONS // (num_items * num_interests)
    return max(_MIN_QUERIES, min(_MAX_QUERIES, affordable))


def tune(
    built: BuiltIndex,
    vectors_ND: NDArray[np.float32],
    interests_QKD: NDArray[np.float32],
    goal: Goal,
    *,
    num_bytes: int,
    reason: str | None = None,
) -> IndexInfo:
    """Find the fastest setting that reaches the goal.

    Args:
        built: A filled index.
        vectors_ND: The vectors in it; may be memory-mapped.
        interests_QKD: Interests of real requests, at least one, finite. Of a single request, which cannot be
            halved, both halves are that request.
        goal: What to reach.
        num_bytes: Size of the index file.
        reason: Why this kind of index, for the manifest.

    Returns:
        What the manifest says about the index.

    Raises:
        GateError: no setting reaches the goal; says what the best one reached and what would help.
    """
    half = interests_QKD[1::2] if len(interests_QKD) > 1 else interests_QKD
    choosing = Queries(interests_QKD[::2], vectors_ND, goal.num_candidates)
    judging = Queries(half, vectors_ND, goal.num_candidates)
    measured = _climb(built, choosing, goal)
    judged: list[Measured] = []
    for point in sorted(measured, key=lambda point: point.request_us):
        if point.recall >= goal.recall:
            judged += judging.measure(built, point.settings)
            if judged[-1].recall >= goal.recall:
                break
    chosen = max(judged or measured, key=lambda point: point.recall)
    if chosen.recall < goal.recall or not judged:
        raise _missed(built, goal, chosen)
    return IndexInfo(
        kind=built.kind,
        factory=built.factory,
        reason=reason,
        search_parameters=dict(chosen.settings),
        recall=chosen.recall,
        recall_target=goal.recall,
        num_candidates=choosing.num_candidates,
        num_queries=len(judging),
        frontier=tuple(
            FrontierPoint(
                search_parameters=dict(point.settings),
                recall=point.recall,
                request_us=point.request_us,
                bytes_per_item=num_bytes / len(vectors_ND),
            )
            for point in pareto(measured)
        ),
    )


def pareto(measured: list[Measured]) -> list[Measured]:
    """Those that no other one beats in both recall and time, fastest first."""
    best: list[Measured] = []
    for point in sorted(measured, key=lambda point: (point.request_us, -point.recall)):
        if not best or point.recall > best[-1].recall:
            best.append(point)
    return best


def _climb(built: BuiltIndex, queries: Queries, goal: Goal) -> list[Measured]:
    """Measure settings from cheap to dear, ladder by ladder, while there is something to gain."""
    ladders = built.ladders(queries.num_candidates)
    queries.measure(built, ladders[0][0])  # touches what the others then find in memory
    measured: list[Measured] = []
    first = 0
    for ladder in ladders:
        rungs = ladder[min(first, len(ladder) - 1) :]
        steps = _climb_ladder(built, queries, goal, rungs, _fastest_us(measured, goal))
        is_hopeless = steps[0][0].request_us > _TOO_SLOW * _fastest_us(measured, goal)
        measured += [point for step in steps for point in step]
        if is_hopeless:
            break
        # The low end is known by now: the next ladder differs near where this one came to its best.
        best = max(range(len(steps)), key=lambda number: _recall_of(steps[number]))
        first = max(0, len(ladder) - len(rungs) + best - _STEPS_BACK)
    return measured


def _climb_ladder(
    built: BuiltIndex, queries: Queries, goal: Goal, rungs: Sequence[Settings], fastest_us: float
) -> list[list[Measured]]:
    """Measure until settings are well past the goal, too slow to be chosen, or gain nothing."""
    steps: list[list[Measured]] = []
    num_past, best, num_idle = 0, 0.0, 0
    for settings in rungs:
        step = queries.measure(built, settings)
        steps.append(step)
        recall = _recall_of(step)
        num_past += recall >= goal.recall
        fastest_us = min(fastest_us, _fastest_us(step, goal))
        num_idle = 0 if recall > best + _IDLE else num_idle + 1
        best = max(best, recall)
        if num_past == _ENOUGH or num_idle == _ENOUGH or step[0].request_us > _TOO_SLOW * fastest_us:
            break
    return steps


def _recall_of(step: Sequence[Measured]) -> float:
    return max(point.recall for point in step)


def _fastest_us(points: Sequence[Measured], goal: Goal) -> float:
    return min((point.request_us for point in points if point.recall >= goal.recall), default=np.inf)


def _missed(built: BuiltIndex, goal: Goal, best: Measured) -> GateError:
    settings = ", ".join(f"{name} {value}" for name, value in best.settings.items())
    return GateError(
        f"gate recall: --recall {goal.recall:g} for {goal.num_candidates} candidates is out of reach of "
        f"{built.factory}: the best is {best.recall:.4f} (with {settings or 'nothing to set'}, "
        f"{best.request_us:,.0f} µs a request). What would help: {built.family.advice}, or --index "
        "flat, or a lower --recall"
    )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
