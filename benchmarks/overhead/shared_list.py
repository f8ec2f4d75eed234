"""Recall and cost of a list that the interests of a user share, by search budget.

    python -m re4.benchmarks.overhead.shared_list BUNDLES DATA

The live version answers histories of test users: by maximum score, and by `soft-quota` with a search budget
for each interest and with a shared budget by several balances. Recall compares a list with that of the same
policy on exact, complete lists. Times are CPU times of the whole pipeline in batches of eight, on one thread.
The policies take turns, and a figure is the median over the rounds.

Legend: K interests.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from re4.benchmarks.load_generator.requests import real_histories
from re4.bundle.publishing.current import live_version
from re4.bundle.scoring.exact_search import exact_search
from re4.bundle.verify import read_manifest
from re4.common.console import table
from re4.serving.retrieval.merging import MAX_SCORE, MergedList, SearchResults
from re4.serving.retrieval.merging.soft_quota import SOFT_QUOTA
from re4.serving.retrieval.pipeline import Query, QueryResult
from re4.serving.versions.snapshot import Snapshot, load_snapshot

_BATCH_SIZE: Final = 8
_BALANCES: Final = (0.0, 0.3, 0.4, 0.5)


def main(
    bundles: Annotated[Path, typer.Argument(help="Bundle directory.")],
    data: Annotated[Path, typer.Argument(help="Data set whose test users ask.")],
    num_users: Annotated[int, typer.Option(help="Users at most.", min=2)] = 200,
    num_candidates: Annotated[int, typer.Option(help="Candidates of a request.", min=2)] = 100,
    num_rounds: Annotated[int, typer.Option(help="Rounds; a time is the median over them.", min=1)] = 3,
) -> None:
    """Print a row for each budget: recall, effective number of interests, CPU microseconds a request."""
    path = live_version(bundles)
    snapshot = load_snapshot(path, read_manifest(path), max_batch_size=_BATCH_SIZE)
    queries = _queries(snapshot, data, num_users, num_candidates)
    policies = {
        "max-score": MAX_SCORE,
        "soft-quota, a budget for each interest": replace(SOFT_QUOTA, balance=None),
        **{f"soft-quota, balance {each:g}": replace(SOFT_QUOTA, balance=each) for each in _BALANCES},
    }
    results: dict[str, list[QueryResult]] = {}
    times_us: dict[str, list[float]] = {name: [] for name in policies}
    for _ in range(num_rounds + 1):  # the first round reads the pages
        for name, policy in policies.items():
            began_s = time.thread_time()
            results[name] = _run(snapshot, [replace(query, merge_policy=policy) for query in queries])
            times_us[name].append((time.thread_time() - began_s) * 1e6 / len(queries))
    rows = []
    exact_lists = [_exact_lists(snapshot, result) for result in results["max-score"]]
    for name, policy in policies.items():
        found = [result.merged for result in results[name]]
        exact = [
            policy.merge(lists, result.query.excluded_rows, num_candidates, result.attention_KL)
            for lists, result in zip(exact_lists, results[name], strict=True)
        ]
        recalls = [np.isin(a.rows_M, b.rows_M).mean() for a, b in zip(exact, found, strict=True)]
        figures = f"{np.mean(recalls):.3f}", f"{_effective(found):.2f}"
        rows.append([name, *figures, f"{statistics.median(times_us[name][1:]):,.0f}"])
    table(
        f"{len(snapshot.vectors_ND):,} items, {len(queries)} requests of {num_candidates} candidates",
        ["", "recall", "effective interests", "CPU µs"],
        rows,
    )


def _queries(snapshot: Snapshot, data: Path, num_users: int, num_candidates: int) -> list[Query]:
    max_length = snapshot.manifest.model.max_history_length
    histories = real_histories(data, max_length=max_length, seed=0).ids[:num_users]
    all_rows = (snapshot.item_ids.rows(ids)[::-1] for ids in histories)
    return [
        Query(history_rows_L=rows[rows >= 0], num_candidates=num_candidates)
        for rows in all_rows
        if (rows >= 0).any()
    ]


def _run(snapshot: Snapshot, queries: Sequence[Query]) -> list[QueryResult]:
    results = []
    for start in range(0, len(queries), _BATCH_SIZE):
        for result in snapshot.pipeline.run(queries[start : start + _BATCH_SIZE]):
            assert isinstance(result, QueryResult)
            results.append(result)
    return results


def _exact_lists(snapshot: Snapshot, result: QueryResult) -> SearchResults:
    depth = result.query.search_depth
    assert isinstance(snapshot.vectors_ND, np.ndarray)
    return SearchResults(*exact_search(result.interests_KD[:, None], snapshot.vectors_ND, depth))


def _effective(lists: Sequence[MergedList]) -> float:
    """Return the mean exponential of the entropy of the interests' shares of a list."""
    numbers = []
    for merged in lists:
        counts = np.bincount(merged.interest_numbers_M)
        shares = counts[counts > 0] / counts.sum()
        numbers.append(np.exp(-(shares * np.log(shares)).sum()))
    return float(np.mean(numbers))


if __name__ == "__main__":
    typer.run(main)
