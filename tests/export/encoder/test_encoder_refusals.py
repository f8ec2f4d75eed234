"""Encoders and graphs that must never reach a server."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from run_samples import SmallEncoder, export_small
from torch import Tensor, nn

from re4.common.errors import ExportError
from re4.exporting.encoder.onnx_encoder import check_graph

TABLE = torch.arange(24.0).reshape(3, 8)


class Unused(SmallEncoder):
    """Has a parameter that its forward flow does not use, as a backward flow's would be."""

    def __init__(self) -> None:
        super().__init__()
        self.W5 = nn.Parameter(torch.randn(4, 4))


class HoldsTable(SmallEncoder):
    """Carries a table that is not one of its parameters."""

    def forward(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        interests_BKD, attention_BKL = super().forward(history_vectors_BLD, lengths_B)
        return interests_BKD + torch.tensor(TABLE.tolist()), attention_BKL


class AttendsToPadding(SmallEncoder):
    """Forgets to mask."""

    def forward(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(history_vectors_BLD, torch.full_like(lengths_B, 1_000_000))


class OtherShape(SmallEncoder):
    """Returns fewer interests than its configuration states."""

    def forward(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        interests_BKD, attention_BKL = super().forward(history_vectors_BLD, lengths_B)
        return interests_BKD[:, :2], attention_BKL


class DependsOnData(SmallEncoder):
    """Branches on its input, which no graph can hold."""

    def forward(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        if history_vectors_BLD.sum() > 100:
            history_vectors_BLD = history_vectors_BLD * 2
        return super().forward(history_vectors_BLD, lengths_B)


class NotFinite(SmallEncoder):
    """Was trained until it broke."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.W2, torch.nan)


class Random(SmallEncoder):
    """Answers differently every time."""

    def forward(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        interests_BKD, attention_BKL = super().forward(history_vectors_BLD, lengths_B)
        return interests_BKD + torch.rand_like(interests_BKD), attention_BKL


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Unused, r"missing \(not used by its forward flow\) \['W5'\]"),
        (HoldsTable, r"extra \['.+'\]"),
        (AttendsToPadding, "padding gets some"),
        (OtherShape, r"expected \(1, 3, 8\)"),
        (DependsOnData, "PyTorch cannot export this encoder to ONNX"),
        (NotFinite, "not all finite"),
        (Random, "PyTorch and ONNX Runtime differ by"),
    ],
)
def test_an_encoder_that_cannot_be_served_is_refused(
    tmp_path: Path, kind: type[nn.Module], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_small(kind(), tmp_path / "encoder.onnx")
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_a_graph_with_other_values_is_refused(small_file: Path) -> None:
    model = onnx.load(small_file)
    with torch.no_grad():
        (other := SmallEncoder()).W2[0, 0] += 1e-6
    with pytest.raises(ExportError, match="W2: the graph holds other values"):
        check_graph(model, other)


def test_a_graph_that_takes_data_from_a_file_is_refused(small_file: Path) -> None:
    model = onnx.load(small_file)
    model.graph.initializer[0].external_data.add(key="location", value="../secret")
    with pytest.raises(ExportError, match="outside the ONNX file"):
        check_graph(model, SmallEncoder())


def test_a_graph_with_foreign_operators_is_refused(small_file: Path) -> None:
    model = onnx.load(small_file)
    model.graph.node[0].domain = "com.example"
    with pytest.raises(ExportError, match=r"com\.example"):
        check_graph(model, SmallEncoder())


def test_a_graph_with_a_large_constant_is_refused(small_file: Path) -> None:
    model = onnx.load(small_file)
    table = onnx.numpy_helper.from_array(np.zeros((1 << 18, 1), np.float32))
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["table"], value=table))
    with pytest.raises(ExportError, match="bytes beside its parameters"):
        check_graph(model, SmallEncoder())
