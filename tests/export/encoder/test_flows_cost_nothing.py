"""The backward flows leave no trace in the served graph: it is the same with and without them."""

from pathlib import Path

import onnx
import pytest
from run_samples import export_small

from re4.training.config import TrainConfig
from re4.training.model.model import MultiInterestModel

NO_FLOWS = {"contrast_weight": 0.0, "attend_weight": 0.0, "construct_weight": 0.0}
SIZES = {"num_interests": 3, "embedding_dim": 8, "attention_dim": 16, "max_history_length": 5}


def graph_of(model: MultiInterestModel, path: Path) -> onnx.GraphProto:
    export_small(model.encoder, path)
    return onnx.load(path).graph


@pytest.mark.parametrize("head", [False, True])
def test_the_served_graph_is_the_same_with_all_flows_and_with_none(head: bool, tmp_path: Path) -> None:
    with_flows = MultiInterestModel(TrainConfig(**SIZES, head=head).resolve(40), 40)
    without = MultiInterestModel(TrainConfig(**SIZES, head=head, **NO_FLOWS).resolve(40), 40)
    assert with_flows.reconstruct is not None
    assert without.reconstruct is None
    ours, theirs = graph_of(with_flows, tmp_path / "with"), graph_of(without, tmp_path / "without")
    assert list(ours.node) == list(theirs.node)
    assert [(value.name, value.type) for value in (*ours.input, *ours.output)] == [
        (value.name, value.type) for value in (*theirs.input, *theirs.output)
    ]
    assert [(held.name, held.dims, held.data_type) for held in ours.initializer] == [
        (held.name, held.dims, held.data_type) for held in theirs.initializer
    ]
