"""Upper bounds of the metrics on a planted log: `python -m re4.benchmarks.quality.upper_bound DATA`.

- *oracle*: knows how the log was drawn. An item's chance is the share of its cluster in the history, times
  its chance within the cluster.
- *free vectors*: K vectors for each test user and one for each item, of D numbers, fitted to the oracle's
  chances without an encoder. Their loss is the capacity of K vectors of D numbers; the further loss of a
  trained model is due to its encoder or its training.

Everything is dense, users by items: for small logs. Legend: U test users, N items, C clusters, K vectors, D
numbers.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from re4.benchmarks.synthetic.event_log import EventSpace
from re4.common.console import progress, table
from re4.training.data.dataset import Dataset
from re4.training.evaluation.protocol import CUTS, Evaluation, Ranking, history_and_targets, summarise

_NUM_STEPS = 250
_FIRST_RATE, _LAST_RATE = 0.05, 0.001


def chosen_UN(dataset: Dataset) -> Tensor:
    """Return the number of times that each test user's history has each item, float32 [U, N]."""
    counts_UN = torch.zeros(dataset.test.num_users, dataset.num_items)
    for user, counts_N in enumerate(counts_UN):
        history = torch.from_numpy(history_and_targets(dataset.test, user)[0])
        counts_N += torch.bincount(history, minlength=len(counts_N))
    return counts_UN


def oracle_UN(space: EventSpace, dataset: Dataset) -> Tensor:
    """Return the chance of each item for each test user, float32 [U, N], by the log's distribution."""
    cluster_N, chance_N = map(torch.from_numpy, space.item_chances(dataset.items()["item_id"].to_numpy()))
    share_UC = F.normalize(chosen_UN(dataset) @ F.one_hot(cluster_N, space.num_clusters).float(), p=1)
    return F.normalize(share_UC[:, cluster_N] * chance_N.float(), p=1)


def free_vectors_UN(chances_UN: Tensor, *, num_vectors: int, dim: int) -> Tensor:
    """Fit `max_k z_k · e` to the chances by softmax cross entropy; return the scores, float32 [U, N]."""
    generator = torch.Generator().manual_seed(0)
    shapes = (len(chances_UN), num_vectors, dim), (chances_UN.shape[1], dim)
    users_UKD, items_ND = (0.5 * torch.randn(shape, generator=generator) for shape in shapes)
    parameters = [users_UKD.requires_grad_(), items_ND.requires_grad_()]
    adam = torch.optim.Adam(parameters, lr=_FIRST_RATE)
    rates = torch.optim.lr_scheduler.LinearLR(adam, 1.0, _LAST_RATE / _FIRST_RATE, _NUM_STEPS)
    with progress(f"{num_vectors} x {dim}", _NUM_STEPS) as bar:
        for _ in range(_NUM_STEPS):
            scores_UN = torch.stack([z_UD @ items_ND.T for z_UD in users_UKD.unbind(1)]).amax(dim=0)
            adam.zero_grad()
            F.cross_entropy(scores_UN, chances_UN).backward()  # type: ignore[no-untyped-call]
            adam.step()
            rates.step()
            bar.advance()
    return scores_UN.detach()


def evaluate_scores(scores_UN: Tensor, dataset: Dataset, *, exclude_history: bool) -> Evaluation:
    """Evaluate the ranked lists of these scores for the test users."""
    if exclude_history:
        scores_UN = scores_UN.masked_fill(chosen_UN(dataset) > 0, -torch.inf)
    top_UM = scores_UN.topk(max(CUTS), dim=1).indices.numpy().astype(np.int64)
    return summarise(Ranking(top_UM=top_UM, interest_cosine=1.0), dataset.test, dataset.num_items)


def main(
    data: Annotated[Path, typer.Argument(help="Prepared from a log of `re4 bench events`.")],
    num_items: Annotated[int, typer.Option(help="As the log was made.", min=1)] = 1_000_000,
    num_tastes: Annotated[int, typer.Option(help="As the log was made.", min=1)] = 4,
    cluster_items: Annotated[int, typer.Option(help="As the log was made.", min=1)] = 200,
    free: Annotated[str, typer.Option(help="K x D of free vectors, by commas.")] = "1x8,1x16,1x64,4x64",
) -> None:
    """Print the upper bounds of a planted log."""
    dataset = Dataset.open(data)
    space = EventSpace(num_items=num_items, num_tastes=num_tastes, cluster_items=cluster_items)
    rows = {"oracle": oracle_UN(space, dataset)}
    for text in filter(None, free.split(",")):
        num_vectors, dim = map(int, text.split("x"))
        rows[f"free vectors, K = {num_vectors}, D = {dim}"] = free_vectors_UN(
            rows["oracle"], num_vectors=num_vectors, dim=dim
        )
    for exclude_history in (False, True):
        title = f"{data.name}, history {'left out' if exclude_history else 'left in'}"
        cells = []
        for name, scores_UN in rows.items():
            found = evaluate_scores(scores_UN, dataset, exclude_history=exclude_history)
            figures = (found.recall_20, found.recall_50, found.ndcg_20)
            cells.append([name, *(f"{value:.4f}" for value in figures)])
        table(title, ["", "Recall@20", "Recall@50", "NDCG@20"], cells)


if __name__ == "__main__":
    typer.run(main)
