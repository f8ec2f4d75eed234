"""All steps by the commands of a user: from an event log to candidates over gRPC.

The catalogue has planted tastes, string ids and titles. The answers of the server are compared with those of
the run, scored by brute force.
"""

import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from running_server import RunningServer

from re4 import RetrievalClient
from re4.exporting.exporter import export_run
from re4.training.run.run import Run

NUM_CLUSTERS, CLUSTER_SIZE, NUM_USERS, NUM_EVENTS = 6, 12, 300, 15


def re4(line, *, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "re4.cli", *line.split()],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def item_name(row):
    return f"sku-{row:04d}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which every command up to export has run."""
    folder = tmp_path_factory.mktemp("whole-way")
    random = np.random.default_rng(11)
    users, items = [], []
    for user in range(NUM_USERS):
        tastes = random.choice(NUM_CLUSTERS, 2, replace=False)
        for cluster in random.choice(tastes, NUM_EVENTS):
            users.append(f"user {user}")
            items.append(item_name(cluster * CLUSTER_SIZE + random.integers(CLUSTER_SIZE)))
    pl.DataFrame(
        {"user": users, "item": items, "timestamp": range(1_700_000_000, 1_700_000_000 + len(users))}
    ).write_csv(folder / "events.csv")
    names = [item_name(row) for row in range(NUM_CLUSTERS * CLUSTER_SIZE)]
    pl.DataFrame({"item": names, "title": [f"The {name}" for name in names]}).write_csv(
        folder / "catalogue.csv"
    )
    re4("data prepare --events events.csv --catalogue catalogue.csv --out data", cwd=folder)
    small = "--embedding-dim 16 --attention-dim 32 --num-interests 3 --construct-dim 8 --batch-size 256"
    re4(f"train data --out run --num-epochs 4 --learning-rate 0.01 {small}", cwd=folder)
    re4("evaluate run", cwd=folder)
    re4("export run --bundles bundles", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with RunningServer(folder / "bundles") as running:
        yield running


def brute_force(run, history, num_candidates):
    """Ids, scores and interests of the best items for a history of ids, oldest first."""
    ids = run.items()["item_id"].to_list()
    model = run.load_model()
    rows = [ids.index(item) for item in reversed(history)][: run.config.max_history_length]
    with torch.no_grad():
        encoded = model.interests(torch.tensor([rows]), torch.tensor([len(rows)]))
    scores_KN = encoded.interests_BKD[0].numpy() @ model.item_vectors_ND().numpy().T
    best_N = scores_KN.max(axis=0)
    best_N[[ids.index(item) for item in history]] = -np.inf
    order = np.argsort(-best_N, kind="stable")[:num_candidates]
    return [ids[row] for row in order], best_N[order], scores_KN.argmax(axis=0)[order]


def test_the_server_answers_what_the_run_would(folder, server):
    run = Run.open(folder / "run")
    history = [item_name(row) for row in (3, 14, 5, 5, 20, 0)]
    with RetrievalClient(server.address) as client:
        reply = client.retrieve(history, 20, exclude_history=True, return_interests=True)
    ids, scores, interests = brute_force(run, history, 20)
    assert reply.item_ids == ids
    np.testing.assert_allclose(reply.scores, scores, rtol=1e-5, atol=1e-5)
    assert reply.interest_index.tolist() == interests.tolist()
    assert reply.interests is not None
    assert reply.interests.attended_item_ids == history
    np.testing.assert_allclose(reply.interests.attention.sum(axis=1), 1, rtol=1e-5)


def test_candidates_come_from_the_tastes_of_the_history(folder, server):
    """Six items of two clusters: most of the first ten candidates must be of those clusters."""
    history = [item_name(row) for row in (1, 13, 2, 14, 3, 15)]
    answer = json.loads(
        re4(
            f"retrieve --address {server.address} --history {','.join(history)} --num-candidates 10"
            " --exclude-history --json",
            cwd=folder,
        )
    )
    items = [candidate["item_id"] for candidate in answer["candidates"]]
    clusters = [int(item.removeprefix("sku-")) // CLUSTER_SIZE for item in items]
    assert sum(cluster in (0, 1) for cluster in clusters) >= 8


def test_info_names_the_published_version(folder, server):
    info = json.loads(re4(f"info --address {server.address} --json", cwd=folder))
    assert info["version"] == (folder / "bundles" / "CURRENT").read_text().strip()
    assert info["num_interests"] == 3
    assert info["item_id_kind"] == "string"


def test_evaluation_is_in_the_run_and_in_the_manifest(folder):
    version = (folder / "bundles" / "CURRENT").read_text().strip()
    manifest = json.loads((folder / "bundles" / version / "manifest.json").read_text())
    recorded = json.loads((folder / "run" / "evaluation.json").read_text())
    interests = manifest["evaluation"].pop("interests")
    assert manifest["evaluation"] == recorded
    assert 1 <= interests["effective_interests"] <= interests["num_interests"]
    assert recorded["test"]["recall_50"] > 0.8


def test_a_second_export_is_picked_up_while_serving(folder, server):
    before = (folder / "bundles" / "CURRENT").read_text().strip()
    export_run(folder / "run", folder / "bundles")
    after = (folder / "bundles" / "CURRENT").read_text().strip()
    assert after != before
    server.wait_for(rf"serving {after}")
    with RetrievalClient(server.address) as client:
        assert client.retrieve([item_name(1)], 5).version == after
