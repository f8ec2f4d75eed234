"""The evaluation of a run on any data set: its own, or a newer one, alone or against another run.

Items are matched by their ids, because rows are numbered by the popularity in one data set. An item
that a run does not know is left out of the histories and is a miss as a target. Users that a run was
trained on are left out.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.common.errors import DataError, UsageError
from re4.training.data.dataset import Dataset, Sequences
from re4.training.data.layout import SplitName
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.protocol import Evaluation, Ranking, rank, summarise, user_metrics
from re4.training.run.run import Run
from re4.training.run.trained_on import TrainedOn, unseen_users

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunEvaluation(Evaluation):
    """The evaluation of a run on users that it was not trained on."""

    num_users_left_out: int
    """Held-out users that were in the training of the run, of a run of its warm starts, or of the
    other run."""
    num_unknown_items: int
    """Items of the data set that the run does not know."""
    is_leak_possible: bool
    """Whether it cannot be known that the run was not trained on these users: figures may be too high."""
    against: Evaluation | None = None
    """The other run on the same users."""
    difference: Mapping[str, Interval] | None = None
    """The run minus the other one, by metric, paired by user."""


def evaluate_run(
    run: Run, dataset: Dataset, split: SplitName, *, exclude_history: bool, against: Run | None = None
) -> RunEvaluation:
    """Evaluate a run, and another one on the same users, on a held-out split of a data set.

    Raises:
        DataError: The runs were trained on all users of the split.
        UsageError: The ids of a run's items cannot be matched.
        RunError: A run is damaged.
    """
    runs = [run] if against is None else [run, against]
    rows = [match_items(dataset, each) for each in runs]
    held_out, is_leak_possible = unseen_part(
        [data for each in runs for data in _trained_elsewhere(each, dataset)], dataset, split
    )
    rankings = [
        rank_matched(each, rows_N, held_out, exclude_history=exclude_history, title=f"evaluating {each.path}")
        for each, rows_N in zip(runs, rows, strict=True)
    ]
    evaluations = [summarise(ranking, held_out, dataset.num_items) for ranking in rankings]
    return RunEvaluation(
        **{item.name: getattr(evaluations[0], item.name) for item in fields(Evaluation)},
        num_users_left_out=dataset.split(split).num_users - held_out.num_users,
        num_unknown_items=int((rows[0] < 0).sum()),
        is_leak_possible=is_leak_possible,
        against=None if against is None else evaluations[1],
        difference=None if against is None else _difference(rankings[0], rankings[1], held_out),
    )


def _trained_elsewhere(run: Run, dataset: Dataset) -> Sequence[TrainedOn]:
    """Return the run's data sets without this one, which may have moved."""
    return run.trained_on()[1:] if run.is_trained_on(dataset) else run.trained_on()


def unseen_part(
    earlier: Sequence[TrainedOn], dataset: Dataset, split: SplitName, *, quiet: bool = False
) -> tuple[Sequences, bool]:
    """Return the users of a split that no earlier training has seen, and whether that is uncertain.

    Left-out users and uncertainty are logged as warnings, unless `quiet`.

    Raises:
        DataError: No user is left.
    """
    held_out = dataset.split(split)
    found = unseen_users(earlier, dataset, split)
    num_left = held_out.num_users - found.num_seen
    if num_left == 0:
        raise DataError(
            f"All {split} users of {dataset.path} were in an earlier training: there is nobody to evaluate "
            "on. Prepare both data sets by the same split (`re4 data prepare`, users by the same --seed, or "
            "--split time), or train without --from."
        )
    if found.num_seen and not quiet:
        _log.warning(
            f"{found.num_seen:,} of {held_out.num_users:,} {split} users were in an earlier training: they "
            f"are left out, and the figures are those of the other {num_left:,}. Data sets that are prepared "
            "with the same --seed avoid this."
        )
    if found.unknown and not quiet:
        _log.warning(
            f"It cannot be known whether {split} users were in the training on {', '.join(found.unknown)} "
            "(gone or changed, and not split by the same hash of user ids): the figures may be too high."
        )
    return (held_out.only(found.is_unseen_U) if found.num_seen else held_out), bool(found.unknown)


def match_items(dataset: Dataset, run: Run) -> NDArray[np.int64]:
    """Return the row that each item of the data set has in the run, int64 [N]; -1 for an unknown item.

    Raises:
        UsageError: The two have no item in common, or ids of different kinds.
    """
    ids, theirs = dataset.items()["item_id"], run.items()["item_id"]
    if ids.dtype != theirs.dtype:
        raise UsageError(
            f"{dataset.path} has {ids.dtype} item ids, {run.path} has {theirs.dtype}: they cannot be "
            "matched. Prepare the data with ids of the same kind, or train without --from."
        )
    numbered = theirs.to_frame().with_row_index("row")
    found = ids.to_frame().join(numbered, on="item_id", how="left", maintain_order="left")
    rows_N = found["row"].cast(pl.Int64).fill_null(-1).to_numpy()
    if rows_N.max() < 0:
        raise UsageError(
            f"{dataset.path} and {run.path} have no item in common. Give data of the same catalogue, or "
            "train without --from."
        )
    return rows_N


def rank_matched(
    run: Run, rows_N: NDArray[np.int64], held_out: Sequences, *, exclude_history: bool, title: str
) -> Ranking:
    """Rank the run's items for the users of a data set; the lists hold rows of the data set.

    A user whose whole history is unknown gets an empty list.

    Args:
        run: The run.
        rows_N: From `match_items`.
        held_out: Users of the data set.
        exclude_history: Whether the items of the history leave the list.
        title: Of the progress bar.
    """
    known, users_C = known_histories(held_out, rows_N)
    found = rank(run.load_model(), known, exclude_history=exclude_history, title=title)
    # From rows of the run to rows of the data set; items that it does not have become -1, no target.
    row_of = np.full(run.num_items, -1, np.int64)
    row_of[rows_N[rows_N >= 0]] = np.flatnonzero(rows_N >= 0)
    top_UM = np.full((held_out.num_users, found.top_UM.shape[1]), -1, np.int64)
    top_UM[users_C] = row_of[found.top_UM]
    lists = found.lists
    if lists is not None:
        lists = replace(
            lists,
            users_S=users_C[lists.users_S],
            top_SM=row_of[lists.top_SM],
            own_SKM=row_of[lists.own_SKM],
        )
    return replace(found, top_UM=top_UM, lists=lists)


def known_histories(held_out: Sequences, rows_N: NDArray[np.int64]) -> tuple[Sequences, NDArray[np.int64]]:
    """Return the known part of each history in the run's rows, and which users have any."""
    users_E = np.repeat(np.arange(held_out.num_users), np.diff(held_out.offsets_U1))
    place_E = np.arange(held_out.num_events) - held_out.offsets_U1[users_E]
    rows_E = rows_N[held_out.items_E]
    kept_E = (place_E < held_out.num_history_U[users_E]) & (rows_E >= 0)
    lengths_U = np.bincount(users_E[kept_E], minlength=held_out.num_users)
    users_C = np.flatnonzero(lengths_U)
    offsets = np.concatenate([[0], np.cumsum(lengths_U[users_C])])
    known = Sequences(
        items_E=rows_E[kept_E].astype(np.int32),
        offsets_U1=offsets,
        num_history_U=lengths_U[users_C].astype(np.int32),
    )
    return known, users_C


def _difference(ours: Ranking, theirs: Ranking, held_out: Sequences) -> dict[str, Interval]:
    by_cut = [user_metrics(ranking.top_UM, held_out) for ranking in (ours, theirs)]
    return {
        f"{kind}_{cut}": Interval.of(
            getattr(by_cut[0][cut], f"{kind}_U") - getattr(by_cut[1][cut], f"{kind}_U")
        )
        for kind in ("recall", "hit_rate", "ndcg")
        for cut in by_cut[0]
    }
