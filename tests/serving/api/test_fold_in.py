"""Recorded events improve the vector of an item that no training has seen, on every server."""

import time
from pathlib import Path

import numpy as np
import pytest
from live_catalogue import open_snapshot, records_of, upsert
from running_server import DEADLINE_S, PAUSE_S, RunningServer
from small_bundles import EMBEDDING_DIM, SmallVersion

from re4 import LiveItem, RetrievalClient
from re4.bundle.layout import IS_COLD
from re4.bundle.live_items.records import Evidence, Removal
from re4.bundle.live_items.state import read_live_state
from re4.serving.versions.snapshot import Snapshot


@pytest.fixture
def version() -> SmallVersion:
    """A version whose last ten items were not trained."""
    version = SmallVersion(has_attributes=True)
    version.attributes[IS_COLD] = [row >= 50 for row in range(60)]
    return version


@pytest.fixture
def snapshot(version: SmallVersion, tmp_path: Path) -> Snapshot:
    return open_snapshot(tmp_path, version.publish(tmp_path))


def test_evidence_moves_items_without_training_alone(version: SmallVersion, snapshot: Snapshot) -> None:
    overlay, ids = snapshot.new_overlay(), version.ids
    direction = np.eye(EMBEDDING_DIM, dtype=np.float32)[0]
    changes = [
        upsert("new", colour=("red",)),
        upsert("with its own vector", 2 * direction),
        *(
            Evidence(id_, version.space, 98.0, 98 * direction)
            for id_ in ("new", "with its own vector", ids[0], ids[55])
        ),
        Evidence("unknown", version.space, 98.0, direction),
        Evidence("new", "b" * 64, 98.0, -direction),
        Evidence(ids[56], version.space, 1.0, direction),
        Removal(ids[56]),
        Evidence(ids[56], version.space, 1.0, direction),
    ]
    overlay.apply(records_of(changes))
    now = snapshot.with_live(overlay.view())
    norm = float(np.median(np.linalg.norm(version.vectors_ND, axis=1)))

    def vector(id_: str) -> np.ndarray:
        (row,) = now.item_ids.rows([id_])
        return now.vectors_of(np.array([row]))[0]

    mean_D = version.vectors_ND.mean(axis=0)
    np.testing.assert_allclose(
        vector("new"), (98 * norm * direction + 2 * mean_D) / 100, rtol=1e-4, atol=1e-5
    )
    expected = (98 * norm * direction + 2 * version.vectors_ND[55]) / 100
    np.testing.assert_allclose(vector(ids[55]), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(vector("with its own vector"), 2 * direction)
    np.testing.assert_array_equal(vector(ids[0]), version.vectors_ND[0])
    assert now.item_ids.rows(["unknown"]).tolist() == [-1]
    assert now.item_ids.rows([ids[56]]).tolist() == [56]
    assert now.live.replaced_N[56], "still removed"
    rows = now.item_ids.rows(["new", "with its own vector", ids[0], ids[55], "unknown"])
    assert now.is_untrained(rows).tolist() == [True, False, False, True, False]
    # Evidence counts for an item that comes later, and again after its attributes changed.
    overlay.apply(records_of([upsert("unknown"), upsert("new", colour=("blue",))], start=100))
    now = snapshot.with_live(overlay.view())
    assert vector("unknown")[0] > 0.9 * norm
    np.testing.assert_allclose(
        vector("new"), (98 * norm * direction + 2 * mean_D) / 100, rtol=1e-4, atol=1e-5
    )


def test_a_recorded_event_becomes_evidence(version: SmallVersion, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    version.publish(bundles)
    history = version.ids[:4]
    with RunningServer(bundles) as server, RetrievalClient(server.address) as client:
        client.upsert_items([LiveItem(item_id="new")])
        until = time.monotonic() + DEADLINE_S
        while client.info()["live_sequence"] < 1:
            assert time.monotonic() < until
            time.sleep(PAUSE_S)
        before = client.retrieve(history, 61).item_ids.index("new")
        client.record_events(["a user"] * 4, history)
        client.record_events(["a user", "nobody"], ["new", "new"])
        client.record_events(["a user"], ["new"])
        while not read_live_state(bundles).evidence:
            assert time.monotonic() < until
            time.sleep(PAUSE_S)
        ((key, evidence),) = read_live_state(bundles).evidence.items()
        assert key == ("new", version.space)
        assert evidence.weight == 1.0, "a user counts once, one without a history not at all"
        interests_KD = version.encode([0, 1, 2, 3])[0]
        best_D = interests_KD[(interests_KD @ version.vectors_ND.mean(axis=0)).argmax()]
        np.testing.assert_allclose(evidence.sum_D, best_D, rtol=1e-3, atol=1e-4)
        assert 5 <= evidence.last_event <= 7, "events of all items count"
        while client.retrieve(history, 61).item_ids.index("new") >= before:
            assert time.monotonic() < until
            time.sleep(PAUSE_S)
