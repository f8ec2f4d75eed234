"""Quality gates: checks of a version before it is published, each with a figure and its bounds.

Gates measure the written files, not objects in memory. All gates run, even where an early one fails. Gates
that compare with the live version are left out where there is none.

Legend: Q queries, K interests, D embedding, M candidates, N items, S sampled items.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.layout import INDEX, VECTORS
from re4.bundle.scoring.exact_search import exact_thresholds, merged_recall, reaches
from re4.common.errors import GateError
from re4.exporting.assemble import AssembledVersion
from re4.exporting.catalogue.histories import evenly_spaced
from re4.exporting.encoder.interests import VersionInterests
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.rebuild.coverage import Coverage
from re4.exporting.rebuild.drift import SharedRequests
from re4.exporting.rebuild.recall_change import RecallChange
from re4.exporting.rebuild.report import GateResult
from re4.exporting.rebuild.settings import Bounds
from re4.exporting.settings import RecallTarget
from re4.exporting.sources.published_version import PublishedVersion
from re4.exporting.sources.version_inputs import CATALOGUE, VersionInputs
from re4.exporting.storage.mapped_vectors import chunks, read_rows

_log = logging.getLogger(__name__)

_MAX_SAMPLED_ITEMS: Final = 2_000
_MIN_SAMPLED_ITEMS: Final = 200
_MAX_COMPARISONS: Final = 4_000_000_000
"""Sampled items times items compared, while that leaves `_MIN_SAMPLED_ITEMS`."""
_NUM_FIRST: Final = 10
"""Candidates of a request in which a dominating item is looked for, at most …"""
_MAX_FIRST_SHARE: Final = 0.01
"""… and at most this share of the catalogue: in a tiny one every item is among many requests' best ten."""
_MIN_REQUESTS: Final = 20
"""With fewer requests the share of one item is left to chance."""
_MIN_NEW_ITEMS: Final = 100
"""With fewer new items it is left to chance whether one of them is in a list."""
_SIZED: Final = {INDEX: "index", VECTORS: "vectors"}
_GOLDEN_SLACK: Final = 0.05


def raise_if_failed(results: Sequence[GateResult]) -> None:
    """Raise an error where a gate failed.

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


def run_gates(
    assembled: AssembledVersion,
    folder: Path,
    live: PublishedVersion | None,
    *,
    bounds: Bounds,
    target: RecallTarget,
) -> Iterator[GateResult]:
    """Run every gate on a version whose files are written.

    Args:
        assembled: The version.
        folder: Its files.
        live: The version that it would replace; None where there is none.
        bounds: The bounds of the figures.
        target: The recall target of its index.
    """
    built = BuiltIndex.open(folder / INDEX, assembled.index, assembled.inputs.vectors_ND.shape)
    judging_QKD, rows_QM = _judging(assembled, built, target)
    yield _recall(assembled, judging_QKD, rows_QM, target)
    yield _golden(assembled, built, bounds, target)
    inputs = assembled.inputs
    numbers_S = evenly_spaced(inputs.num_trained, _num_sampled(len(inputs.vectors_ND)))
    sample_S = inputs.trained_rows(numbers_S)
    is_found_exactly_S, is_found_S = _found_by_own_vector(assembled, built, sample_S, target.num_candidates)
    yield _self_recall(is_found_exactly_S, is_found_S, bounds)
    yield from _interests(assembled.interests, live, inputs, bounds)
    num_items = len(inputs.vectors_ND)
    if live is None:
        yield from _item_share(rows_QM, num_items, None, bounds)
        yield from _coverage(Coverage.of(rows_QM, num_items, inputs.cold_rows), None, inputs, bounds)
        return
    shared = SharedRequests.of(assembled, folder, live)
    ours_QM = shared.answers_of(assembled, built, target)
    del built  # so that one index at a time is in memory
    theirs_QM = shared.answers_of_live(live, target)
    before = _largest_item_share(theirs_QM, len(live.vectors_ND))
    yield from _item_share(rows_QM, num_items, before, bounds)
    ours, theirs = (
        Coverage.of(lists_QM[:, : target.num_candidates], num_all, cold_rows)
        for lists_QM, num_all, cold_rows in (
            (ours_QM, num_items, inputs.cold_rows),
            (theirs_QM, len(live.vectors_ND), np.flatnonzero(live.is_cold_N())),
        )
    )
    yield from _coverage(ours, theirs, inputs, bounds)
    yield _hubness(is_found_exactly_S, live, bounds, target)
    yield _drift(shared, ours_QM, theirs_QM, live, bounds, target)
    yield from _sizes(assembled, folder, live, bounds)


def _judging(
    assembled: AssembledVersion, built: BuiltIndex, target: RecallTarget
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the half of the held-out requests that judged the settings in tuning, and their candidates."""
    interests_QKD = assembled.interests_QKD
    judging_QKD = interests_QKD[1::2] if len(interests_QKD) > 1 else interests_QKD
    return judging_QKD, built.candidates(
        assembled.index.search_parameters, judging_QKD, assembled.inputs.vectors_ND, target.num_candidates
    )


def _recall(
    assembled: AssembledVersion,
    judging_QKD: NDArray[np.float32],
    rows_QM: NDArray[np.int64],
    target: RecallTarget,
) -> GateResult:
    num_candidates = min(target.num_candidates, assembled.items.num_items)
    return GateResult(
        name="recall",
        figure=_share_found(assembled, judging_QKD, rows_QM, num_candidates),
        low=target.recall,
        meaning=f"share of the exact {num_candidates} candidates found, over {len(rows_QM)} real requests",
        advice="see frontier.png of the live version; choose another --index, or a lower --recall",
    )


def _golden(
    assembled: AssembledVersion, built: BuiltIndex, bounds: Bounds, target: RecallTarget
) -> GateResult:
    golden = assembled.golden
    low = bounds.min_golden_recall
    num_candidates = golden.candidate_rows_QM.shape[1]
    rows_QM = built.candidates(
        assembled.index.search_parameters, golden.interests_QKD, assembled.inputs.vectors_ND, num_candidates
    )
    return GateResult(
        name="golden",
        figure=_share_found(assembled, golden.interests_QKD, rows_QM, num_candidates),
        low=max(0.0, target.recall - _GOLDEN_SLACK) if low is None else low,
        meaning=f"share of the exact answers to {len(golden.interests_QKD)} golden queries found",
        advice="the index misses candidates that servers need: another --index or a higher --recall",
    )


def _share_found(
    assembled: AssembledVersion,
    interests_QKD: NDArray[np.float32],
    rows_QM: NDArray[np.int64],
    num_candidates: int,
) -> float:
    vectors_ND = assembled.inputs.vectors_ND
    thresholds_Q = exact_thresholds(interests_QKD, vectors_ND, num_candidates, read_chunks=chunks)
    return merged_recall(interests_QKD, vectors_ND, rows_QM, thresholds_Q)


def _item_share(
    rows_QM: NDArray[np.int64], num_items: int, before: float | None, bounds: Bounds
) -> Iterator[GateResult]:
    """Measure how many requests one item dominates: a vector of huge norm is among the best of nearly all."""
    if len(rows_QM) < _MIN_REQUESTS:
        return
    high, live = bounds.max_item_share, ""
    if before is not None:
        high, live = min(high, before + bounds.max_item_share_rise), f" (live version: {before:.4g})"
    yield GateResult(
        name="item_share",
        figure=_largest_item_share(rows_QM, num_items),
        high=high,
        meaning=(
            f"share of {len(rows_QM)} real requests that have one and the same item among their first "
            f"{_num_first(num_items)} candidates{live}"
        ),
        advice=(
            "one item crowds the others out: look for a vector of huge norm. If that is meant, raise "
            "--max-item-share or --max-item-share-rise"
        ),
    )


def _num_first(num_items: int) -> int:
    return max(1, min(_NUM_FIRST, int(_MAX_FIRST_SHARE * num_items)))


def _largest_item_share(rows_QM: NDArray[np.int64], num_items: int) -> float:
    """Return the share of requests whose first candidates contain the item that most of them contain."""
    first_QF = rows_QM[:, : _num_first(num_items)]
    counts = np.unique(first_QF[first_QF >= 0], return_counts=True)[1]
    return float(counts.max() / len(rows_QM)) if counts.size else 0.0


def _coverage(
    coverage: Coverage, before: Coverage | None, inputs: VersionInputs, bounds: Bounds
) -> Iterator[GateResult]:
    """Compare the share of the catalogue that is in anybody's list, and that of new items."""
    if coverage.num_requests < _MIN_REQUESTS:
        return
    _log.info(str(coverage))
    live = "" if before is None else f" (live version: {before.catalogue:.4g})"
    yield GateResult(
        name="coverage",
        figure=coverage.catalogue,
        low=None if before is None else bounds.min_coverage_ratio * before.catalogue,
        meaning=f"share of the catalogue in the list of any of {coverage.num_requests} real requests{live}",
        advice="few items take all places: look at the training, or lower --min-coverage-ratio for this once",
        details=coverage.to_json(),
    )
    if coverage.new is not None and len(inputs.cold_rows) >= _MIN_NEW_ITEMS:
        yield GateResult(
            name="new_items",
            figure=coverage.new / coverage.trained if coverage.trained else 0.0,
            low=bounds.min_new_items_ratio,
            meaning=(
                f"share of {len(inputs.cold_rows):,} new items in the list of any real request, as a "
                "multiple of the trained items' share"
            ),
            advice=(
                "new items are in nobody's list: do they have attributes of trained items? Raise "
                "--cold-share, or lower --min-new-items-ratio if that is meant"
            ),
        )


def _interests(
    interests: VersionInterests, live: PublishedVersion | None, inputs: VersionInputs, bounds: Bounds
) -> Iterator[GateResult]:
    """Compare the effective number of interests with the live version's, where both have several."""
    if interests.num_interests == 1:
        return
    compares = live is not None and live.manifest.model.num_interests > 1
    before = live.manifest.effective_interests if live is not None and compares else 0.0
    yield GateResult(
        name="interests",
        figure=interests.effective_interests,
        low=bounds.min_interests_ratio * before if before else None,
        meaning=(
            f"effective number of interests in the lists of {interests.num_requests} real requests, of "
            f"{interests.num_interests}" + (f" (live version: {before:.4g})" if before else "")
        ),
        advice=(
            interests.collapse
            or "the interests of a user have come together: look at the training, or lower "
            "--min-interests-ratio if that is meant"
        ),
        details={
            **interests.to_json(),
            "hit_shares": _hit_shares(inputs.evaluation),
            "advice": interests.collapse,
        },
    )


def _hit_shares(evaluation: Mapping[str, Any]) -> Any:
    """Return each interest's share of the hits, by the run's evaluation; None where that lacks it."""
    for split in ("test", "valid"):
        figures = (evaluation.get(split) or {}).get("interests")
        if figures:
            return figures["hit_shares"]
    return None


def _num_sampled(num_items: int) -> int:
    return max(_MIN_SAMPLED_ITEMS, min(_MAX_SAMPLED_ITEMS, _MAX_COMPARISONS // num_items))


def _found_by_own_vector(
    assembled: AssembledVersion, built: BuiltIndex, sample_S: NDArray[np.int64], num_candidates: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which items exact search finds by their own vector, and which the index finds so."""
    vectors_ND = assembled.inputs.vectors_ND
    vectors_SD = read_rows(vectors_ND, sample_S)
    # A vector has the budget of one interest: that of all would find items that requests hardly find.
    shared = {"shared_nprobe", "reach_drop"}
    settings = {k: v for k, v in assembled.index.search_parameters.items() if k not in shared}
    rows_SM = built.candidates(settings, vectors_SD[:, None, :], vectors_ND, num_candidates)
    is_found_S = (rows_SM == sample_S[:, None]).any(axis=1)
    return is_found_S | _found_exactly(vectors_SD, vectors_ND, num_candidates), is_found_S


def _found_exactly(
    vectors_SD: NDArray[np.float32], vectors_ND: NDArray[np.float32], num_candidates: int
) -> NDArray[np.bool_]:
    own_S = np.einsum("sd,sd->s", vectors_SD, vectors_SD)
    last_S = exact_thresholds(vectors_SD[:, None, :], vectors_ND, num_candidates, read_chunks=chunks)
    return np.asarray(reaches(own_S, last_S) & (own_S > 0))


def _self_recall(
    is_found_exactly_S: NDArray[np.bool_], is_found_S: NDArray[np.bool_], bounds: Bounds
) -> GateResult:
    num_exact = int(is_found_exactly_S.sum())
    return GateResult(
        name="self_recall",
        figure=float(is_found_S.sum() / num_exact) if num_exact else 0.0,
        low=bounds.min_self_recall,
        meaning=f"share that the index finds of {num_exact} items that exact search finds by their vector",
        advice="the index does not find what it holds: another --index",
    )


def _hubness(
    is_found_exactly_S: NDArray[np.bool_], live: PublishedVersion, bounds: Bounds, target: RecallTarget
) -> GateResult:
    trained = np.flatnonzero(~live.is_cold_N())
    sample_SD = read_rows(
        live.vectors_ND, trained[evenly_spaced(len(trained), _num_sampled(len(live.vectors_ND)))]
    )
    before = float(_found_exactly(sample_SD, live.vectors_ND, target.num_candidates).mean())
    now = float(is_found_exactly_S.mean())
    return GateResult(
        name="hubness",
        figure=now,
        low=bounds.min_hubness_ratio * before,
        meaning=f"share of items that exact search finds by their own vector (live version: {before:.4g})",
        advice="few vectors crowd the others out, or many are alike: look at the training",
    )


def recall_change_gate(change: RecallChange, bounds: Bounds) -> GateResult | None:
    """Return the gate of the change of Recall@50; None where the live version finds nothing.

    It fails only where the whole interval lies below the bound: a version that may be as good passes.
    """
    high = change.change.high
    if high is None or not change.live_recall_50:
        return None
    return GateResult(
        name="recall_change",
        figure=high / change.live_recall_50,
        low=bounds.min_recall_change,
        meaning=(
            f"upper end of the 95 % interval of the change of Recall@50 on {change.num_users:,} held-out "
            f"users (new {change.recall_50:.4f}, live version {change.live_recall_50:.4f}, change "
            f"{change.change}), as a share of the live version's"
        ),
        advice=(
            "the new model finds less than the live one: look at its training and its data. If that is "
            "meant, lower --min-recall-change for this once"
        ),
        details=change.to_json(),
    )


def embedding_space_gate(agreement: float, bounds: Bounds) -> GateResult:
    """Return the gate of vectors made elsewhere: their agreement with the encoder's own vectors."""
    return GateResult(
        name="embedding_space",
        figure=agreement,
        low=bounds.min_agreement,
        meaning="median cosine between the given vectors and those that the encoder was trained with",
        advice="the encoder works only in its own space: name the one that fits with --encoder-from",
    )


def _drift(
    shared: SharedRequests,
    ours_QM: NDArray[np.int64],
    theirs_QM: NDArray[np.int64],
    live: PublishedVersion,
    bounds: Bounds,
    target: RecallTarget,
) -> GateResult:
    """Measure the overlap of both versions' answers to the same histories, among items that both have."""
    return GateResult(
        name="drift",
        figure=shared.overlap(ours_QM, theirs_QM, live, target),
        low=bounds.min_overlap,
        meaning=(
            f"share of the live version's answers given again, over {len(shared.rows_QL)} real requests "
            "whose histories both versions know"
        ),
        advice="the model or the catalogue changed much: if that is meant, lower --min-overlap for this once",
    )


def _sizes(
    assembled: AssembledVersion, folder: Path, live: PublishedVersion, bounds: Bounds
) -> Iterator[GateResult]:
    num_items, before = assembled.items.num_items, live.manifest.items.num_items
    is_first_catalogue = CATALOGUE in assembled.inputs.lineage and CATALOGUE not in live.manifest.lineage
    # The first catalogue adds all items that were never trained; only the loss of trained ones is suspicious.
    compared = assembled.inputs.num_trained if is_first_catalogue else num_items
    kind = "items with a trained vector" if is_first_catalogue else "items"
    yield GateResult(
        name="count",
        figure=compared / before,
        low=bounds.min_items_ratio,
        high=bounds.max_items_ratio,
        meaning=f"number of {kind}, {compared:,}, as a multiple of the live version's {before:,} items",
        advice="is the catalogue complete? If that is meant, widen --min-items-ratio or --max-items-ratio",
    )
    bytes_before = {entry.name: entry.num_bytes for entry in live.manifest.files}
    # An index in Milvus has no file: then the vectors alone are compared.
    sized = [name for name in _SIZED if name in bytes_before and (folder / name).exists()]
    each = sum((folder / name).stat().st_size for name in sized) / num_items
    each_before = sum(bytes_before[name] for name in sized) / before
    yield GateResult(
        name="size",
        figure=each / each_before,
        low=bounds.min_bytes_ratio,
        high=bounds.max_bytes_ratio,
        meaning=(
            f"bytes an item of {' and '.join(_SIZED[name] for name in sized)}, {each:,.0f}, as a multiple of "
            "the live version's"
        ),
        advice="another index kind or width? If that is meant, widen --min-bytes-ratio or --max-bytes-ratio",
    )
