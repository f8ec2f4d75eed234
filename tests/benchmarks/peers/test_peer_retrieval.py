"""The work of the peer servers equals that of the product, with either budget of lists."""

import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from small_bundles import MAX_HISTORY, NUM_INTERESTS, SmallVersion

from re4.benchmarks.common.peer_environments import BASELINES
from re4.bundle.manifest import IndexInfo, ItemsInfo, ModelInfo
from re4.bundle.publishing.publish import stage_version
from re4.bundle.verify import verify_version
from re4.exporting.index.build import build_index
from re4.serving.retrieval.pipeline import Query
from re4.serving.versions.snapshot import load_snapshot

NUM_ITEMS = 800


@pytest.mark.parametrize("budget", [{}, {"shared_nprobe": 12, "reach_drop": 0.7}], ids=["equal", "shared"])
def test_a_peer_answers_like_the_product(
    budget: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = SmallVersion(num_items=NUM_ITEMS, seed=4)
    version.index = faiss.serialize_index(build_index("IVF16,Flat", version.vectors_ND).index).tobytes()
    parameters = {"nprobe": 4, "k_factor": 2, "pool_factor": 3} | budget
    with stage_version(tmp_path) as staged:
        version.write(staged.path)
        dim = version.vectors_ND.shape[1]
        name = staged.publish(
            model=ModelInfo(
                name="re4",
                num_interests=NUM_INTERESTS,
                embedding_dim=dim,
                max_history_length=MAX_HISTORY,
                space=version.space,
            ),
            index=IndexInfo(kind="ivf", factory="IVF16,Flat", search_parameters=parameters),
            items=ItemsInfo(num_items=NUM_ITEMS, id_kind="string", space=version.space),
            evaluation={},
            lineage={},
        )
    monkeypatch.syspath_prepend(str(BASELINES / "servers"))
    from retrieval import Retrieval

    histories = np.random.default_rng(0).integers(NUM_ITEMS, size=(6, 5))
    rows_QM, _, _ = Retrieval(tmp_path / name).retrieve(
        [[version.ids[row] for row in history] for history in histories.tolist()], 20
    )
    snapshot = load_snapshot(tmp_path / name, verify_version(tmp_path / name), max_batch_size=8)
    answers = snapshot.pipeline.run(
        [Query(history_rows_L=history[::-1].copy(), num_candidates=20) for history in histories]
    )
    sys.modules.pop("retrieval")
    assert [answer.merged.rows_M.tolist() for answer in answers] == rows_QM.tolist()
