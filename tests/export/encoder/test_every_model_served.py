"""Every model, at its defaults, is exported and answers online with its own training scores."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from planted_tastes import write_planted

from re4.bundle.layout import ENCODER
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest
from re4.exporting.encoder.onnx_encoder import list_initializers
from re4.exporting.exporter import export_run
from re4.exporting.settings import VersionSettings
from re4.serving.retrieval.pipeline import Query, QueryResult
from re4.serving.versions.snapshot import load_snapshot
from re4.training.config import TrainConfig
from re4.training.presets import PRESETS
from re4.training.run.run import Run
from re4.training.trainer.loop import train


@pytest.mark.parametrize("model", [name for name in PRESETS if name != "re4"])
def test_every_model_is_served_as_it_was_trained(model: str, tmp_path: Path) -> None:
    is_trained = "num_epochs" not in PRESETS[model].fixed
    options = {"scores": "cosine", "temperature": 0.2, "num_epochs": 1} if is_trained else {}
    config = TrainConfig(model=model, **options)
    train(write_planted(tmp_path / "data"), config, tmp_path / "run", device="cpu")
    export_run(tmp_path / "run", tmp_path / "bundles", VersionSettings(index="flat"))

    trained = Run.open(tmp_path / "run").load_model()
    path = live_version(tmp_path / "bundles")
    encoder = (path / ENCODER).read_bytes()
    assert len(encoder) < 1 << 20
    assert {
        name: value.shape for name, value in list_initializers(onnx.load_from_string(encoder)).items()
    } == {name: tuple(value.shape) for name, value in trained.encoder.state_dict().items()}
    snapshot = load_snapshot(path, read_manifest(path), max_batch_size=4)
    for history in ([3], [7, 1, 12], [5, 9, 2, 4, 11, 8]):
        query = Query(history_rows_L=np.array(history), num_candidates=20)
        (answer,) = snapshot.pipeline.run([query])
        assert isinstance(answer, QueryResult)
        with torch.inference_mode():
            encoded = trained.interests(torch.tensor([history]), torch.tensor([len(history)]))
            scores_N = (encoded.interests_BKD[0] @ trained.item_vectors_ND().T).amax(dim=0).numpy()
        np.testing.assert_allclose(answer.merged.scores_M, np.sort(scores_N)[::-1][:20], atol=2e-5)
        np.testing.assert_allclose(scores_N[answer.merged.rows_M], answer.merged.scores_M, atol=2e-5)
        is_present_K = encoded.attention_BKL[0].sum(dim=1).numpy() > 0
        assert is_present_K[answer.merged.interest_numbers_M].all(), "found by an interest that is there"
