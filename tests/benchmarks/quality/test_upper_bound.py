"""Planted logs: an oracle that nobody beats, vectors that lose what they cannot hold, what is near what."""

import numpy as np
import pytest
import torch

from re4.benchmarks.quality.cluster_proximity import cluster_proximity
from re4.benchmarks.quality.upper_bound import chosen_UN, evaluate_scores, free_vectors_UN, oracle_UN
from re4.benchmarks.synthetic.event_log import EventSpace, write_event_log
from re4.training.config import TrainConfig
from re4.training.data.prepare import prepare_data
from re4.training.evaluation.baselines import fit_baselines, rank_baseline
from re4.training.evaluation.protocol import history_and_targets, summarise
from re4.training.model.model import MultiInterestModel

SPACE = EventSpace(num_items=300, num_tastes=2, cluster_items=20)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    write_event_log(folder / "log.parquet", SPACE, 10_000)
    return prepare_data(folder / "log.parquet", folder / "data", max_user_events=14, now_s=2e9)


@pytest.fixture(scope="module")
def chances_UN(dataset):
    return oracle_UN(SPACE, dataset)


def test_the_oracle_looks_only_into_the_clusters_of_the_history(dataset, chances_UN):
    cluster_N, _ = SPACE.item_chances(dataset.items()["item_id"].to_numpy())
    for user in range(dataset.test.num_users):
        history, _ = history_and_targets(dataset.test, user)
        likely = np.flatnonzero(chances_UN[user].numpy())
        assert set(cluster_N[likely]) == set(cluster_N[history])


@pytest.mark.parametrize("exclude_history", [False, True])
def test_no_baseline_beats_the_oracle(dataset, chances_UN, exclude_history):
    best = evaluate_scores(chances_UN, dataset, exclude_history=exclude_history)
    for baseline, _ in fit_baselines(dataset.train, dataset.valid, dataset.num_items).values():
        ranking = rank_baseline(baseline, dataset.test, dataset.num_items, exclude_history=exclude_history)
        assert summarise(ranking, dataset.test, dataset.num_items).recall_20 < best.recall_20


def test_wide_free_vectors_hold_what_narrow_ones_cannot(dataset, chances_UN):
    recall = {
        dim: evaluate_scores(
            free_vectors_UN(chances_UN, num_vectors=1, dim=dim), dataset, exclude_history=False
        ).recall_20
        for dim in (2, 16)
    }
    best = evaluate_scores(chances_UN, dataset, exclude_history=False).recall_20
    assert recall[2] < 0.85 * best
    assert recall[16] > 0.97 * best


def test_the_history_left_out_is_not_listed(dataset):
    history_UN = chosen_UN(dataset)
    assert evaluate_scores(history_UN, dataset, exclude_history=True).recall_20 < 0.2
    assert torch.equal(history_UN.sum(dim=1), torch.tensor(dataset.test.num_history_U).float())


def test_a_mean_of_separate_clusters_is_near_to_each_by_its_share(dataset):
    cluster_N, _ = SPACE.item_chances(dataset.items()["item_id"].to_numpy())
    config = TrainConfig(model="mean-pool", embedding_dim=SPACE.num_clusters).resolve(dataset.num_items)
    model = MultiInterestModel(config, dataset.num_items)
    model.set_item_vectors(
        torch.nn.functional.one_hot(torch.from_numpy(cluster_N), SPACE.num_clusters).float()
    )
    means, worst = [], []
    for user in range(dataset.test.num_users):
        counts_C = np.bincount(cluster_N[history_and_targets(dataset.test, user)[0]])
        cosines_C = counts_C[counts_C > 0] / np.linalg.norm(counts_C)
        means.append(cosines_C.mean())
        worst.append(cosines_C.min())
    found = cluster_proximity(model, dataset, SPACE)
    assert (found.own_mean, found.own_worst) == pytest.approx((np.mean(means), np.mean(worst)), abs=1e-5)
    assert found.foreign == pytest.approx(0, abs=1e-6)
    assert found.own_share > 0.3  # a cluster has 20 items, so a list of 50 has room for others
