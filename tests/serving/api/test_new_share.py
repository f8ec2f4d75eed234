"""The server's bound on new items while there are live items: the best others take the surplus places."""

import math
from typing import Any

import numpy as np
import pytest
from live_catalogue import open_snapshot, records_of, upsert
from small_bundles import EMBEDDING_DIM, SmallVersion

from re4.bundle.layout import IS_COLD
from re4.bundle.live_items.records import Evidence
from re4.protos.v1 import retrieval_pb2
from re4.serving.api import replies
from re4.serving.api.batch_handler import RequestResult, answer_batch
from re4.serving.api.validation import check_retrieve
from re4.serving.settings import Fallback, ServerSettings
from re4.serving.versions.snapshot import Snapshot

NUM_LIVE = 12


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Snapshot]:
    """A version with new items, without and with live ones that answer to everybody."""
    folder = tmp_path_factory.mktemp("bounded")
    version = SmallVersion(has_attributes=True)
    version.attributes[IS_COLD] = [row >= 56 for row in range(version.num_items)]
    snapshot = open_snapshot(folder, version.publish(folder))
    overlay = snapshot.new_overlay()
    changes: list[Any] = [upsert(f"new{number}", colour=("red",)) for number in range(NUM_LIVE)]
    interests_KD = version.encode([0, 1, 2, 3])[0]
    changes += [
        Evidence(f"new{number}", version.space, 90.0, 90 * interests_KD.mean(axis=0).astype(np.float32))
        for number in range(NUM_LIVE)
    ]
    assert interests_KD.shape[1] == EMBEDDING_DIM
    overlay.apply(records_of(changes))
    return snapshot, snapshot.with_live(overlay.view())


def ask(snapshot: Snapshot, num: int, max_new_share: float, **fields: Any) -> retrieval_pb2.RetrieveReply:
    history = retrieval_pb2.ItemIds(strings=snapshot.item_ids.ids(np.arange(4)))
    request = check_retrieve(
        retrieval_pb2.RetrieveRequest(history=history, num_candidates=num, **fields),
        snapshot,
        ServerSettings(max_new_share=max_new_share),
    )
    (result,) = answer_batch([request], Fallback.NONE)
    assert isinstance(result, RequestResult), result
    reply = retrieval_pb2.RetrieveReply.FromString(replies.retrieve_reply(result, 0, request))
    reply.ClearField("stage_times")
    return reply


def split(snapshot: Snapshot, found: retrieval_pb2.RetrieveReply) -> tuple[list[str], list[str]]:
    """Return the new items of a reply, and the others."""
    ids = list(found.items.strings)
    is_new = snapshot.is_untrained(snapshot.item_ids.rows(ids)).tolist()
    return (
        [each for each, new in zip(ids, is_new, strict=True) if new],
        [each for each, new in zip(ids, is_new, strict=True) if not new],
    )


@pytest.mark.parametrize("policy", ["max-score", "round-robin"])
def test_surplus_new_items_give_way_to_the_best_others(
    snapshots: tuple[Snapshot, Snapshot], policy: str
) -> None:
    _, live = snapshots
    merge = {"merge_policy": f"MERGE_POLICY_{policy.upper().replace('-', '_')}"}
    free = ask(live, 10, 0.0, **merge)
    all_new, _ = split(live, free)
    assert len(all_new) > 5
    old = [{"attribute": IS_COLD, "values": ["true"], "drop": True}]
    all_old = list(ask(live, 10, 0.0, filters=old, **merge).items.strings)
    for share in (0.1, 0.25, 0.5):
        found, most = ask(live, 10, share, **merge), math.ceil(10 * share)
        assert split(live, found) == (all_new[:most], all_old[: 10 - most])
        assert list(found.scores) == sorted(found.scores, reverse=True) or policy != "max-score"


def test_requests_without_surplus_are_answered_as_without_a_bound(
    snapshots: tuple[Snapshot, Snapshot],
) -> None:
    version, live = snapshots
    assert ask(version, 20, 0.01) == ask(version, 20, 0.0), "no live items"
    assert ask(live, 60, 0.5) == ask(live, 60, 0.0), "fewer new items than the bound"
    new = [{"attribute": IS_COLD, "values": ["true"]}]
    assert ask(live, 10, 0.1, filters=new) == ask(live, 10, 0.0, filters=new), "only new ones are wanted"
    assert ask(live, 10, 0.1, num_new_items=4) == ask(live, 10, 0.0, num_new_items=4)


def test_a_list_is_not_cut_short(snapshots: tuple[Snapshot, Snapshot]) -> None:
    _, live = snapshots
    few = [{"attribute": "colour", "values": ["red"]}]
    free = ask(live, 40, 0.0, filters=few)
    found = ask(live, 40, 0.1, filters=few)
    assert len(found.items.strings) == len(free.items.strings)
