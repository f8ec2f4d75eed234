"""Forces between the interests of a user: what the recommendation loss gains by a split, and its gradients.

    python -m re4.benchmarks.quality.interest_forces RUN_OF_ONE_INTEREST RUN_OF_SEVERAL

First, one interest z of each held-out user is split into z + δ and z - δ, with δ along the direction in
which the items differ most by the model's own chances, and without an effect on their mean score. The
change of the loss is computed for four forms of the loss, on the next event and as expected by the model's
own chances. Second, at the trained interests of the other run: the gradient of the loss by each
interest, its part away from the mean of the user's interests, and re-contrast's.

Legend: U users, K interests, N items, D embedding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from re4.common.console import table
from re4.training.data.dataset import Dataset
from re4.training.evaluation.protocol import history_and_targets
from re4.training.losses.flows.recontrast import outside_history, positives, recontrast_sum
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run

SPLITS: Final = (0.1, 0.3, 1.0)
"""Standard deviation of an item's score difference δ · e, by the model's own chances."""


def chosen_loss(scores_UKN: Tensor, targets_U: Tensor) -> Tensor:
    """Return the loss with negatives scored by the interest that fits the target best, [U]."""
    targets_UK = _at(scores_UKN, targets_U)
    best_U1 = targets_UK.argmax(dim=1, keepdim=True)
    return (scores_UKN.logsumexp(dim=2) - targets_UK).gather(1, best_U1)[:, 0]


def served_loss(scores_UKN: Tensor, targets_U: Tensor) -> Tensor:
    """Return the loss with all scores as served, the largest over the interests, [U]."""
    return scores_UKN.amax(dim=1).logsumexp(dim=1) - _at(scores_UKN, targets_U).amax(dim=1)


def soft_maximum_loss(scores_UKN: Tensor, targets_U: Tensor) -> Tensor:
    """Return the loss with the log-sum-exp of the interests' scores in place of the largest, [U]."""
    return scores_UKN.logsumexp(dim=(1, 2)) - _at(scores_UKN, targets_U).logsumexp(dim=1)


def mixture_loss(scores_UKN: Tensor, targets_U: Tensor) -> Tensor:
    """Return the loss of the even mixture of the interests' softmaxes, [U]."""
    chances_UK = _at(scores_UKN, targets_U) - scores_UKN.logsumexp(dim=2)
    return float(np.log(scores_UKN.shape[1])) - chances_UK.logsumexp(dim=1)


LOSSES: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "chosen": chosen_loss,
    "served": served_loss,
    "soft maximum": soft_maximum_loss,
    "mixture": mixture_loss,
}


def _at(scores_UKN: Tensor, targets_U: Tensor) -> Tensor:
    return scores_UKN[torch.arange(len(targets_U)), :, targets_U]


def split_changes(
    interest_UD: Tensor, vectors_ND: Tensor, targets_U: Tensor
) -> dict[str, dict[float, tuple[float, float]]]:
    """Return the mean change of each loss by a split: on the targets, and as expected by the model."""
    scores_UN = interest_UD @ vectors_ND.T
    chances_UN = scores_UN.softmax(dim=1)
    differences_UN = torch.stack([_along(chances_N, vectors_ND) for chances_N in chances_UN])
    every_N = torch.arange(len(vectors_ND))
    changes: dict[str, dict[float, tuple[float, float]]] = {name: {} for name in LOSSES}
    for split in SPLITS:
        both_UKN = torch.stack(
            [scores_UN + split * differences_UN, scores_UN - split * differences_UN], dim=1
        )
        for name, loss in LOSSES.items():
            real = (loss(both_UKN, targets_U) - mixture_loss(scores_UN[:, None], targets_U)).mean()
            expected = 0.0
            for chances_N, one_1N, both_KN in zip(chances_UN, scores_UN[:, None], both_UKN, strict=True):
                before_N = mixture_loss(one_1N.expand(len(every_N), 1, -1), every_N)
                after_N = loss(both_KN.expand(len(every_N), -1, -1), every_N)
                expected += float(chances_N @ (after_N - before_N)) / len(scores_UN)
            changes[name][split] = float(real), expected
    return changes


def _along(chances_N: Tensor, vectors_ND: Tensor) -> Tensor:
    """Return δ · e of each item, of standard deviation 1 and mean 0, along the direction of most variance."""
    mean_D = chances_N @ vectors_ND
    centred_ND = vectors_ND - mean_D
    covariance_DD = (centred_ND * chances_N[:, None]).T @ centred_ND
    across_DD = torch.eye(len(mean_D)) - torch.outer(mean_D, mean_D) / mean_D.square().sum()
    direction_D = torch.linalg.eigh(across_DD @ covariance_DD @ across_DD).eigenvectors[:, -1]
    differences_N: Tensor = vectors_ND @ (across_DD @ direction_D)
    return differences_N / (chances_N @ differences_N.square()).sqrt()


def gradient_figures(model: MultiInterestModel, dataset: Dataset) -> dict[str, tuple[float, ...]]:
    """Return, by loss: gradient norms of the interest of the target and of the others, and parts away.

    Training users' last events are the targets. A part away is the step of the negative gradient along
    `z_k` minus the mean of the user's interests, of the target's interest and of the others.
    """
    train = dataset.train
    starts_U, ends_U = train.offsets_U1[:-1], train.offsets_U1[1:]
    users = np.flatnonzero(ends_U - starts_U > 1)
    length = model.config.L
    rows_UL, lengths_U = np.zeros((len(users), length), np.int64), np.zeros(len(users), np.int64)
    for place, user in enumerate(users.tolist()):
        newest_first = train.items_E[starts_U[user] : ends_U[user] - 1][::-1][:length]
        rows_UL[place, : len(newest_first)], lengths_U[place] = newest_first, len(newest_first)
    targets_U = torch.from_numpy(train.items_E[ends_U[users] - 1].astype(np.int64))
    rows, lengths = torch.from_numpy(rows_UL), torch.from_numpy(lengths_U)
    vectors_ND = model.item_vectors_ND()
    encoded = model.interests(rows, lengths)
    interests_UKD = encoded.interests_BKD.detach().requires_grad_()
    scores_UKN = interests_UKD @ vectors_ND.T
    chosen_U = _at(scores_UKN, targets_U).argmax(dim=1)
    is_chosen_UK = F.one_hot(chosen_U, model.config.K).bool()
    apart_UKD = F.normalize((interests_UKD - interests_UKD.mean(dim=1, keepdim=True)).detach(), dim=2)
    totals = {name: loss(scores_UKN, targets_U).sum() for name, loss in LOSSES.items()}
    if model.config.contrast_weight and encoded.log_attention_BKL is not None:
        other_U, outside_UL = outside_history(rows, lengths, torch.Generator().manual_seed(0))
        positives_UKL = positives(encoded.attention_BKL.detach(), lengths)
        total = recontrast_sum(
            interests_BKD=interests_UKD,
            history_vectors_BLD=vectors_ND[rows],
            positives_BKL=positives_UKL,
            lengths_B=lengths,
            other_B=other_U,
            outside_BL=outside_UL,
            temperature=model.config.contrast_temperature,
        )
        # As in training: a mean over positives, where the other losses are means over users.
        share = len(users) / max(int(positives_UKL.sum()), 1)
        totals[f"re-contrast × {model.config.contrast_weight:g}"] = (
            model.config.contrast_weight * share * total
        )
    figures = {}
    for name, total in totals.items():
        (gradient_UKD,) = torch.autograd.grad(total, interests_UKD, retain_graph=True)
        norms_UK, away_UK = gradient_UKD.norm(dim=2), -(gradient_UKD * apart_UKD).sum(dim=2)
        figures[name] = tuple(
            float(values_UK[mask_UK].mean())
            for values_UK in (norms_UK, away_UK)
            for mask_UK in (is_chosen_UK, ~is_chosen_UK)
        )
    return figures


def main(
    one: Annotated[Path, typer.Argument(help="Run of one interest.")],
    several: Annotated[Path, typer.Argument(help="Run of several interests, of the same data set.")],
) -> None:
    """Print what a split of one interest changes, and the gradients at several interests."""
    run = Run.open(one)
    dataset, model = run.open_dataset(), run.load_model()
    interests, targets = [], []
    with torch.inference_mode():
        for held_out in (dataset.valid, dataset.test):
            histories = (torch.from_numpy(array) for array in held_out.histories(model.config.L))
            interests.append(model.interests(*histories).interests_BKD[:, 0])
            targets += [history_and_targets(held_out, user)[1][0] for user in range(held_out.num_users)]
        changes = split_changes(torch.cat(interests), model.item_vectors_ND(), torch.tensor(targets))
    rows = []
    for name, by_split in changes.items():
        rows.append([name, *(f"{value:+.4f}" for split in SPLITS for value in by_split[split])])
    headings = [f"{split:g}: {where}" for split in SPLITS for where in ("next event", "expected")]
    table(f"{dataset.path.name} · change of the loss by a split", ["negatives", *headings], rows)
    other = Run.open(several)
    other.check_dataset(dataset)
    figures = gradient_figures(other.load_model(), dataset)
    table(
        f"{dataset.path.name} · gradients at {other.config.K} interests, means over training users",
        ["", "norm, target's interest", "norm, others", "away, target's", "away, others"],
        [[name, *(f"{value:+.4f}" for value in values)] for name, values in figures.items()],
    )


if __name__ == "__main__":
    typer.run(main)
