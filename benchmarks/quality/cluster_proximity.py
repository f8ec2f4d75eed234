"""Proximity of the interests of trained runs to the clusters of a planted log.

    python -m re4.benchmarks.quality.cluster_proximity RUN …

For each test user, by cosine with the nearest of the interests: the clusters of the own history, their mean
and their lowest, and the 20th of the items of other clusters. A list is good where the first two are above
the last.

Legend: U test users, N items, K interests, L history length.
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from torch.nn import functional as F

from re4.benchmarks.synthetic.event_log import EventSpace
from re4.common.console import table
from re4.training.data.dataset import Dataset
from re4.training.evaluation.protocol import history_and_targets
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run

_PLACE = 20


class Proximity(NamedTuple):
    """Means over test users.

    Cosines of own clusters, each the mean over its items, in the mean and of the farthest cluster; the cosine
    of the 20th item of others; the share of own clusters' items among the first 50 by score, history left in.
    """

    own_mean: float
    own_worst: float
    foreign: float
    own_share: float


def cluster_proximity(model: MultiInterestModel, dataset: Dataset, space: EventSpace) -> Proximity:
    """Return means over all test users, those with nearly the whole catalogue as clusters included."""
    cluster_N, _ = space.item_chances(dataset.items()["item_id"].to_numpy())
    rows_UL, lengths_U = dataset.test.histories(model.config.L)
    vectors_ND = model.item_vectors_ND()
    model.eval()
    with torch.inference_mode():
        interests_UKD = model.interests(torch.from_numpy(rows_UL), torch.from_numpy(lengths_U)).interests_BKD
        scores_UN = (interests_UKD @ vectors_ND.T).amax(dim=1)
        cosines_UN = (F.normalize(interests_UKD, dim=2) @ F.normalize(vectors_ND, dim=1).T).amax(dim=1)
    first_UM = scores_UN.topk(50, dim=1).indices.numpy()
    of_users: list[tuple[float, float, float, float]] = []
    for user, cosines_N in enumerate(cosines_UN.numpy()):
        own = np.unique(cluster_N[history_and_targets(dataset.test, user)[0]])
        is_own_N = np.isin(cluster_N, own)
        by_cluster = [float(cosines_N[cluster_N == cluster].mean()) for cluster in own]
        foreign = np.sort(cosines_N[~is_own_N])[::-1][:_PLACE]
        own_share = float(is_own_N[first_UM[user]].mean())
        of_users.append((float(np.mean(by_cluster)), min(by_cluster), float(foreign[-1]), own_share))
    return Proximity(*np.mean(of_users, axis=0).tolist())


def main(
    runs: Annotated[list[Path], typer.Argument(help="Trained on data prepared from `re4 bench events`.")],
    num_items: Annotated[int, typer.Option(help="As the log was made.", min=1)] = 1_000_000,
    num_tastes: Annotated[int, typer.Option(help="As the log was made.", min=1)] = 4,
    cluster_items: Annotated[int, typer.Option(help="As the log was made.", min=1)] = 200,
) -> None:
    """Print the proximity of trained runs' interests to clusters."""
    space = EventSpace(num_items=num_items, num_tastes=num_tastes, cluster_items=cluster_items)
    rows = []
    for path in runs:
        run = Run.open(path)
        found = cluster_proximity(run.load_model(), run.open_dataset(), space)
        rows.append([str(path), *(f"{value:.2f}" for value in found)])
    headings = ["", "own clusters, mean", "worst own cluster", f"foreign item {_PLACE}", "own in first 50"]
    table("cosine with the nearest interest", headings, rows)


if __name__ == "__main__":
    typer.run(main)
