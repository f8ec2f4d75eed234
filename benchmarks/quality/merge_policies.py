"""Merge policies compared: recall, and how interests share the list, on test users of a run.

    python -m re4.benchmarks.quality.merge_policies RUN … [--against RUN]

Each interest's own list comes from exact search, so that the merges are those of a server with an exact
index. Runs of one setting with other seeds are averaged by user.

Legend: U users, K interests, S results of an interest, M candidates.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from re4.common.console import table
from re4.serving.retrieval.merging import POLICIES, SearchResults
from re4.training.data.dataset import Sequences
from re4.training.evaluation.interests import effective_numbers, interest_counts
from re4.training.evaluation.metrics import Interval, rank_metrics
from re4.training.evaluation.protocol import history_and_targets
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run

NUM_CANDIDATES: Final = 50
_NUM_FIRST: Final = 10
_NO_ROWS: Final = np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class PolicyFigures:
    """The figures of one policy, a value for each user."""

    recall_U: list[float] = field(default_factory=list)
    ndcg_U: list[float] = field(default_factory=list)
    effective_U: list[float] = field(default_factory=list)
    of_one_U: list[float] = field(default_factory=list)
    """1 where the first 10 candidates come from one interest."""
    listed: set[int] = field(default_factory=set)
    """All candidates."""


def compare_policies(
    model: MultiInterestModel, held_out: Sequences, *, exclude_history: bool, max_users: int
) -> dict[str, PolicyFigures]:
    """Merge the lists of held-out users by each policy."""
    rows_UL, lengths_U = held_out.histories(model.config.L)
    vectors_ND = model.item_vectors_ND()
    figures = {name: PolicyFigures() for name in POLICIES}
    users = np.unique(np.linspace(0, held_out.num_users - 1, max_users).astype(np.int64))
    depth = min(NUM_CANDIDATES, len(vectors_ND))
    for user in users.tolist():
        own = slice(user, user + 1)
        with torch.inference_mode():
            encoded = model.interests(torch.from_numpy(rows_UL[own]), torch.from_numpy(lengths_U[own]))
            scores_KN = encoded.interests_BKD[0] @ vectors_ND.T
        history, targets = history_and_targets(held_out, user)
        excluded = np.unique(history) if exclude_history else _NO_ROWS
        top = scores_KN.topk(min(depth + len(excluded), len(vectors_ND)), dim=1)
        results = SearchResults(top.values.numpy(), top.indices.numpy())
        attention_KL = encoded.attention_BKL[0, :, : int(lengths_U[user])].numpy()
        for name, policy in POLICIES.items():
            merged = policy.merge(results, excluded, depth, attention_KL)
            _add(figures[name], merged.rows_M, merged.interest_numbers_M, np.unique(targets), len(scores_KN))
    return figures


def _add(
    figures: PolicyFigures,
    rows_M: NDArray[np.int64],
    numbers_M: NDArray[np.int64],
    targets: NDArray[np.int64],
    num_interests: int,
) -> None:
    is_hit_UM, num_targets_U = np.isin(rows_M, targets)[None], np.array([len(targets)])
    figures.recall_U.append(float(rank_metrics(is_hit_UM, num_targets_U, len(rows_M)).recall_U[0]))
    figures.ndcg_U.append(float(rank_metrics(is_hit_UM, num_targets_U, min(20, len(rows_M))).ndcg_U[0]))
    figures.effective_U.append(float(effective_numbers(interest_counts(numbers_M[None], num_interests))[0]))
    figures.of_one_U.append(float(len(np.unique(numbers_M[:_NUM_FIRST])) == 1))
    figures.listed.update(rows_M.tolist())


def main(
    runs: Annotated[list[Path], typer.Argument(help="Runs of one setting, of different seeds.")],
    against: Annotated[
        Path | None, typer.Option(help="Run to compare with, by max-score; default: those given.")
    ] = None,
    split: Annotated[Literal["valid", "test"], typer.Option(help="Which held-out users.")] = "test",
    max_users: Annotated[int, typer.Option(help="Users at most, spread evenly.", min=2)] = 5_000,
) -> None:
    """Print the figures of each merge policy, with differences from max-score paired by user."""
    opened = [Run.open(path) for path in runs]
    dataset = opened[0].open_dataset()

    def compared(run: Run) -> dict[str, PolicyFigures]:
        run.check_dataset(dataset)
        return compare_policies(
            run.load_model(), dataset.split(split), exclude_history=exclude_history, max_users=max_users
        )

    for exclude_history in (False, True):
        of_runs = [compared(run) for run in opened]
        bases = of_runs if against is None else [compared(Run.open(against))]
        base = [_means(bases, "max-score", name) for name in ("recall_U", "ndcg_U")]
        rows = []
        for policy in POLICIES:
            cells = [policy]
            for before_U, name in zip(base, ("recall_U", "ndcg_U"), strict=True):
                values_U = _means(of_runs, policy, name)
                cells += [f"{values_U.mean():.4f}", _change(values_U, before_U)]
            cells.append(f"{_means(of_runs, policy, 'effective_U').mean():.2f}")
            cells.append(f"{_means(of_runs, policy, 'of_one_U').mean():.3f}")
            shares = [len(each[policy].listed) / dataset.num_items for each in of_runs]
            rows.append([*cells, f"{np.mean(shares):.3f}"])
        history = "left out" if exclude_history else "left in"
        num_users = len(of_runs[0]["max-score"].recall_U)
        table(
            f"{dataset.path.name} · {split} · {num_users:,} users · {len(runs)} runs · history {history}",
            ["", "Recall@50", "Δ %", "NDCG@20", "Δ %", "effective", "first 10 of one", "coverage"],
            rows,
        )


def _means(of_runs: list[dict[str, PolicyFigures]], policy: str, name: str) -> NDArray[np.float64]:
    """Return a figure of each user, averaged over the runs."""
    return np.asarray(np.mean([getattr(each[policy], name) for each in of_runs], axis=0))


def _change(values_U: NDArray[np.float64], before_U: NDArray[np.float64]) -> str:
    change, scale = Interval.of(values_U - before_U), 100 / max(float(before_U.mean()), 1e-12)
    width = change.half_width if change.half_width is not None else math.nan
    return f"{scale * change.mean:+.1f} ± {scale * width:.1f}"


if __name__ == "__main__":
    typer.run(main)
