"""Agreement of attention with the scores of its interests, which re-attend trains.

    python -m re4.benchmarks.quality.attention_agreement RUN …

For each interest of a test user with two history items or more: the divergence of the attention `a` from
`â = softmax_j( z_k · x_j )`, and whether the item with the largest attention, which `re4 retrieve --reasons`
names first, is the one with the highest score.

Legend: B users, L history length, D embedding size.
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from re4.common.console import table
from re4.common.errors import UsageError
from re4.training.encoders.encoder import Encoded
from re4.training.kernels.masks import valid_mask
from re4.training.run.run import Run


class Agreement(NamedTuple):
    """Means over interests of users with two history items or more.

    The Kullback-Leibler divergence of `a` from `â`, in nats, and the share of interests whose attention and
    scores are largest at the same history item.
    """

    divergence: float
    same_item: float


def agreement(encoded: Encoded, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Agreement:
    """Return the agreement of attention and scores within histories."""
    if encoded.log_attention_BKL is None:
        raise UsageError("Only encoders with attention, re4 and comirec-sa, have something to agree with.")
    is_padding_B1L = ~valid_mask(lengths_B, history_vectors_BLD.shape[1])[:, None]
    scores_BKL = encoded.interests_BKD @ history_vectors_BLD.transpose(1, 2)
    log_target_BKL = scores_BKL.masked_fill(is_padding_B1L, -torch.inf).log_softmax(dim=2)
    difference_BKL = (log_target_BKL - encoded.log_attention_BKL).masked_fill(is_padding_B1L, 0)
    divergence_BK = (log_target_BKL.exp() * difference_BKL).sum(dim=2)
    is_same_BK = log_target_BKL.argmax(dim=2) == encoded.attention_BKL.argmax(dim=2)
    has_choice_B = lengths_B > 1
    means = (each_BK[has_choice_B].mean() for each_BK in (divergence_BK, is_same_BK.float()))
    return Agreement(*map(float, means))


def main(runs: Annotated[list[Path], typer.Argument(help="Runs of re4 or comirec-sa.")]) -> None:
    """Print the agreement of attention and scores of trained runs, on test users."""
    rows = []
    for path in runs:
        run = Run.open(path)
        model = run.load_model()
        histories = run.open_dataset().test.histories(run.config.L)
        rows_BL, lengths_B = (torch.from_numpy(array) for array in histories)
        with torch.inference_mode():
            history_vectors_BLD = model.as_scored(model.item_embedding(rows_BL))
            found = agreement(model.interests(rows_BL, lengths_B), history_vectors_BLD, lengths_B)
        rows.append([str(path), f"{found.divergence:.3f}", f"{found.same_item:.2f}"])
    table("attention and scores", ["", "divergence", "same first item"], rows)


if __name__ == "__main__":
    typer.run(main)
