"""Tuning of search parameters: the fastest setting whose merged candidates reach the recall target.

The queries are interests of real held-out histories, whose distribution differs from that of item vectors.
Half of them choose a setting, the other half judge it: a setting that misses the target there is passed over
for the next slower one. The reported recall is that of the judging half.

Times cover search, scoring by the vectors and merging, on one thread and in small batches, as a server's
worker thread runs them. They are CPU time, so that other load on the machine does not influence the choice.
Where compiled code scans the lists of this index here, they are weighted means of its time and that of FAISS.
Recalls are those of FAISS, on every machine.

Legend: Q requests, K interests, D embedding, N items.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.bundle.manifest import FrontierPoint, IndexInfo
from re4.bundle.scoring.exact_search import exact_thresholds, merged_recall
from re4.common.errors import GateError
from re4.exporting.index.built_index import BuiltIndex, merge_results
from re4.exporting.index.families import SearchParameters
from re4.exporting.settings import RecallTarget
from re4.exporting.storage.mapped_vectors import chunks

BATCH_SIZE: Final = 8
"""Requests in one search."""
_TIMED_REQUESTS: Final = 96
"""Requests of which compiled code is timed: each setting costs it a whole search."""
_FAISS_SHARE: Final = 0.1
"""Weight of FAISS's time where compiled code scans the lists: searches with filters need it all the same, and
its time alone depends on the `k_factor`."""

_MAX_QUERIES: Final = 1000
_MIN_QUERIES: Final = 200
_MAX_COMPARISONS: Final = 4_000_000_000
"""Interests times items compared for the exact answers, while that leaves `_MIN_QUERIES`."""


_POOL_FACTORS: Final = (1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 12, 16)
"""Results scored by the vectors, as multiples of the number of candidates."""

_TOO_SLOW: Final = 2
"""A ladder ends at a setting that is this many times slower than one that reaches the target."""
_ENOUGH: Final = 3
"""A ladder ends after so many settings past the target, or without a gain."""
_IDLE: Final = 1e-4
"""A smaller gain in recall counts as none."""
_STEPS_BACK: Final = 6


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Recall and time of one setting."""

    settings: SearchParameters
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
            exact_thresholds(interests_QKD, vectors_ND, self.num_candidates, read_chunks=chunks)
            if thresholds_Q is None
            else thresholds_Q
        )

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.interests_QKD)

    def measure(
        self, built: BuiltIndex, settings: SearchParameters, *, num_threads: int = 1
    ) -> list[Measurement]:
        """Search for every request with one setting, as a server does; times are medians over batches.

        Args:
            built: The index.
            settings: With or without the `pool_factor`.
            num_threads: Threads of a search. Times are CPU time with one thread, and elapsed time with more
                or where the index is on another machine.

        Returns:
            One measurement where the setting is complete. Where it lacks the `pool_factor`, one for each
            factor to try, from small to large.
        """
        tried = self._complete(settings)
        found: list[list[NDArray[np.int64]]] = [[] for _ in tried]
        times_us: list[list[float]] = [[] for _ in tried]
        compiled_us: list[list[float]] = [[] for _ in tried]
        clock = thread_time if num_threads == 1 and built.collection is None else perf_counter
        with _threads(num_threads):
            for start in range(0, len(self), BATCH_SIZE):
                batch_BKD = self.interests_QKD[start : start + BATCH_SIZE]
                began = clock()
                results = built.search(settings, batch_BKD, self.num_candidates)
                search_s = clock() - began
                for number, setting in enumerate(tried):
                    began = clock()
                    rows_BM = merge_results(results, setting, batch_BKD, self.vectors_ND, self.num_candidates)
                    times_us[number].append((search_s + clock() - began) * 1e6 / len(batch_BKD))
                    found[number].append(rows_BM)
                    began = clock()
                    if (
                        num_threads == 1
                        and start < _TIMED_REQUESTS
                        and built.search_compiled(setting, batch_BKD, self.vectors_ND, self.num_candidates)
                    ):
                        compiled_us[number].append((clock() - began) * 1e6 / len(batch_BKD))
        return [
            Measurement(
                settings=setting,
                recall=merged_recall(
                    self.interests_QKD, self.vectors_ND, np.concatenate(found[number]), self._thresholds_Q
                ),
                request_us=_request_us(times_us[number], compiled_us[number]),
            )
            for number, setting in enumerate(tried)
        ]

    def _complete(self, settings: SearchParameters) -> list[SearchParameters]:
        """Return the setting, or where it lacks the `pool_factor`, the setting with each factor."""
        if "k_factor" not in settings or "pool_factor" in settings:
            return [settings]
        most = self.interests_QKD.shape[1] * settings["k_factor"]
        factors = [factor for factor in _POOL_FACTORS if factor < most] + [most]
        return [{**settings, "pool_factor": factor} for factor in factors]


def _request_us(faiss_us: list[float], compiled_us: list[float]) -> float:
    own_us = float(np.median(faiss_us))
    if not compiled_us:
        return own_us
    return _FAISS_SHARE * own_us + (1 - _FAISS_SHARE) * float(np.median(compiled_us))


def num_queries_for(num_items: int, num_interests: int) -> int:
    """Return the number of requests that tuning can afford to answer exactly."""
    affordable = _MAX_COMPARISONS // (num_items * num_interests)
    return max(_MIN_QUERIES, min(_MAX_QUERIES, affordable))


def tune(
    built: BuiltIndex,
    vectors_ND: NDArray[np.float32],
    interests_QKD: NDArray[np.float32],
    target: RecallTarget,
    *,
    num_bytes: int,
    reason: str | None = None,
    shares_budget: bool = True,
) -> IndexInfo:
    """Find the fastest setting that reaches the target.

    Interests share one budget of lists where the index allows it. Then the setting also has the `nprobe` with
    which each interest, searched with a budget of its own, reaches the target.

    Args:
        built: A filled index.
        vectors_ND: The vectors in it; may be memory-mapped.
        interests_QKD: Interests of real requests, at least one, finite. Of a single request, which cannot be
            halved, both halves are that request.
        target: The recall to reach.
        num_bytes: Size of the index file.
        reason: The reason for this kind of index, for the manifest.
        shares_budget: Whether the interests of a request may share a budget; a GPU's index cannot.

    Returns:
        The manifest's facts about the index.

    Raises:
        GateError: no setting reaches the target; the message names the best recall and a remedy.
    """
    half = interests_QKD[1::2] if len(interests_QKD) > 1 else interests_QKD
    choosing = Queries(interests_QKD[::2], vectors_ND, target.num_candidates)
    judging = Queries(half, vectors_ND, target.num_candidates)
    measured = _climb(built, choosing, target, interests_QKD[::2] if shares_budget else None)
    judged: list[Measurement] = []
    for point in sorted(measured, key=lambda point: point.request_us):
        if point.recall >= target.recall:
            judged += judging.measure(built, point.settings)
            if judged[-1].recall >= target.recall:
                break
    chosen = max(judged or measured, key=lambda point: point.recall)
    if chosen.recall < target.recall or not judged:
        raise _missed(built, target, chosen)
    return IndexInfo(
        kind=built.kind,
        factory=built.factory,
        reason=reason,
        search_parameters=_with_equal_budget(built, choosing, chosen.settings, target),
        recall=chosen.recall,
        recall_target=target.recall,
        num_candidates=choosing.num_candidates,
        num_queries=len(judging),
        collection=built.collection,
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


def _with_equal_budget(
    built: BuiltIndex, queries: Queries, settings: SearchParameters, target: RecallTarget
) -> dict[str, int | float]:
    """Add to a setting with a shared budget the least `nprobe` that reaches the target without sharing.

    Searches that need the complete list of each interest read so many lists, and so do searches on a GPU. It
    is the highest one where none reaches the target.
    """
    if "shared_nprobe" not in settings:
        return dict(settings)
    factors = {name: settings[name] for name in ("k_factor", "pool_factor")}
    rungs = [{**factors, **rung} for rung in built.family.settings(built.index, queries.num_candidates)]
    place = bisect_left(rungs, target.recall, key=lambda rung: queries.measure(built, rung)[0].recall)
    return {"nprobe": rungs[min(place, len(rungs) - 1)]["nprobe"], **settings}


def pareto(measured: list[Measurement]) -> list[Measurement]:
    """Return the measurements that no other one beats in both recall and time, fastest first."""
    best: list[Measurement] = []
    for point in sorted(measured, key=lambda point: (point.request_us, -point.recall)):
        if not best or point.recall > best[-1].recall:
            best.append(point)
    return best


def _climb(
    built: BuiltIndex, queries: Queries, target: RecallTarget, sharing_QKD: NDArray[np.float32] | None
) -> list[Measurement]:
    """Measure settings from cheap to expensive, ladder by ladder, while recall grows."""
    ladders = built.ladders(queries.num_candidates, sharing_QKD)
    queries.measure(built, ladders[0][0])  # warms up the pages that the others use
    measured: list[Measurement] = []
    first = 0
    for ladder in ladders:
        rungs = ladder[min(first, len(ladder) - 1) :]
        steps = _climb_ladder(built, queries, target, rungs, _fastest_us(measured, target))
        is_hopeless = steps[0][0].request_us > _TOO_SLOW * _fastest_us(measured, target)
        measured += [point for step in steps for point in step]
        if is_hopeless:
            break
        # The cheap end is known by now: the next ladder differs near the best setting of this one.
        best = max(range(len(steps)), key=lambda number: _recall_of(steps[number]))
        first = max(0, len(ladder) - len(rungs) + best - _STEPS_BACK)
    return measured


def _climb_ladder(
    built: BuiltIndex,
    queries: Queries,
    target: RecallTarget,
    rungs: Sequence[SearchParameters],
    fastest_us: float,
) -> list[list[Measurement]]:
    """Measure until settings are well past the target, too slow to be chosen, or without a gain."""
    steps: list[list[Measurement]] = []
    num_past, best, num_idle = 0, 0.0, 0
    for settings in rungs:
        step = queries.measure(built, settings)
        steps.append(step)
        recall = _recall_of(step)
        num_past += recall >= target.recall
        fastest_us = min(fastest_us, _fastest_us(step, target))
        num_idle = 0 if recall > best + _IDLE else num_idle + 1
        best = max(best, recall)
        if num_past == _ENOUGH or num_idle == _ENOUGH or step[0].request_us > _TOO_SLOW * fastest_us:
            break
    return steps


def _recall_of(step: Sequence[Measurement]) -> float:
    return max(point.recall for point in step)


def _fastest_us(points: Sequence[Measurement], target: RecallTarget) -> float:
    return min((point.request_us for point in points if point.recall >= target.recall), default=np.inf)


def _missed(built: BuiltIndex, target: RecallTarget, best: Measurement) -> GateError:
    settings = ", ".join(f"{name} {value}" for name, value in best.settings.items())
    return GateError(
        f"gate recall: --recall {target.recall:g} for {target.num_candidates} candidates is out of reach of "
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
