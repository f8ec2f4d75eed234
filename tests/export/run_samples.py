"""Runs to export: a fake one around a small attention encoder, and a real small one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from re4.exporting.encoder import onnx_encoder
from re4.exporting.encoder.onnx_encoder import export_encoder
from re4.exporting.exporter import publish_inputs
from re4.exporting.settings import VersionSettings
from re4.exporting.sources.version_inputs import RunToExport, inputs_from_run
from re4.training.config import TrainConfig
from re4.training.data.dataset import Sequences
from re4.training.data.writing import write_dataset
from re4.training.run.trained_on import TrainedOn
from re4.training.trainer.loop import train

SPACE = "5" * 64


class SmallEncoder(nn.Module):
    """`softmax_j(w_k · tanh(W1 x_j))` over the valid positions, then the weighted sum of `x_j W2`."""

    def __init__(self, num_interests: int = 3, embedding_dim: int = 8, width: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.W1 = nn.Parameter(torch.randn(width, embedding_dim, generator=generator) / embedding_dim**0.5)
        self.w = nn.Parameter(torch.randn(num_interests, width, generator=generator) / width**0.5)
        self.W2 = nn.Parameter(torch.randn(embedding_dim, embedding_dim, generator=generator))

    def forward(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        logits_BKL = self.w @ torch.tanh(self.W1 @ history_vectors_BLD.transpose(1, 2))
        padding_BL = torch.arange(history_vectors_BLD.shape[1])[None, :] >= lengths_B[:, None]
        attention_BKL = torch.softmax(logits_BKL.masked_fill(padding_BL[:, None, :], -torch.inf), dim=2)
        return attention_BKL @ (history_vectors_BLD @ self.W2), attention_BKL


def export_small(
    encoder: nn.Module, path: Path, *, length: int = 5, num_interests: int = 3, dim: int = 8
) -> float:
    return export_encoder(
        encoder,
        num_interests=num_interests,
        embedding_dim=dim,
        max_history_length=length,
        space=SPACE,
        path=path,
    )


class FakeRun:
    """The part of a run that export uses, easily spoiled."""

    def __init__(self, num_items: int = 50, num_probes: int = 90) -> None:
        rng = np.random.default_rng(3)
        self.path = Path("runs/fake")
        self.catalogue_item_column: str | None = None
        self.config = TrainConfig(num_interests=3, embedding_dim=8, max_history_length=5)
        self.item_ids: list[Any] = [f"item {row}" for row in range(num_items)]
        self.vectors_ND: NDArray[Any] = rng.standard_normal((num_items, 8)).astype(np.float32)
        self.counts_N = rng.integers(0, 9, num_items)
        self.lengths_P = rng.integers(1, 6, num_probes)
        self.rows_PL = rng.integers(0, num_items, (num_probes, 5))
        self.rows_PL[np.arange(5) >= self.lengths_P[:, None]] = 0
        self.encoder: nn.Module = SmallEncoder()

    def scan_items(self) -> pl.LazyFrame:
        return pl.LazyFrame({"item_id": self.item_ids})

    def item_counts_N(self) -> NDArray[np.int64]:
        return self.counts_N

    def load_model(self) -> Any:
        vectors_ND = torch.from_numpy(self.vectors_ND).requires_grad_()
        return SimpleNamespace(encoder=self.encoder, item_table_ND=vectors_ND, as_scored=Tensor.detach)

    def probe_histories(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.rows_PL, self.lengths_P

    def evaluation(self) -> dict[str, Any]:
        return {"test": {"recall@50": 0.25}}

    def trained_on(self) -> list[TrainedOn]:
        return []


def interrupted_run() -> FakeRun:
    """Large enough for an index that is trained and tuned, and the same in every process."""
    return FakeRun(num_items=2000, num_probes=40)


TINY_CONFIG = TrainConfig(
    num_interests=2,
    embedding_dim=8,
    attention_dim=16,
    construct_dim=4,
    max_history_length=4,
    num_epochs=1,
)


def train_tiny_run(folder: Path, config: TrainConfig = TINY_CONFIG) -> Path:
    """Prepare a data set of 24 users who like odd or even items, and train on it for an epoch."""

    def sequences(first_user: int, num_users: int, num_targets: int) -> Sequences:
        items = [
            [(user % 2 + 2 * step) % 30 for step in range(6)]
            for user in range(first_user, first_user + num_users)
        ]
        return Sequences(
            items_E=np.array(items, np.int32).ravel(),
            offsets_U1=np.arange(0, 6 * num_users + 1, 6),
            num_history_U=np.full(num_users, 6 - num_targets, np.int32),
        )

    dataset = write_dataset(
        folder / "data",
        items=pl.DataFrame(
            {
                "item_id": [1000 + row for row in range(30)],
                "title": [f"Title {row}" for row in range(30)],
                "colour": ["red", "blue"] * 15,
            }
        ),
        sequences={"train": sequences(0, 16, 0), "valid": sequences(16, 4, 2), "test": sequences(20, 4, 2)},
        users={
            name: pl.Series("user_id", range(num)) for name, num in (("train", 16), ("valid", 4), ("test", 4))
        },
        prepared={},
        dropped={},
    )
    train(dataset, config, folder / "run", device="cpu")
    return folder / "run"


def publish_run(run: RunToExport, bundles: Path, **options: Any) -> str:
    """Publish a run, as `export_run` does one that it has opened."""
    if (target := options.pop("target", None)) is not None:
        options |= vars(target)
    with converting_once():
        return publish_inputs(
            lambda scratch: inputs_from_run(run, scratch), bundles, VersionSettings(**options)
        )


_convert = onnx_encoder._convert
_converted: dict[tuple[object, ...], onnx.ModelProto] = {}


@contextmanager
def converting_once() -> Iterator[None]:
    """Have PyTorch convert an encoder once for all tests: it takes seconds, and they have few different ones.

    Encoders are the same whose class and parameters are: not for ones that a setting alone tells apart.
    """

    def convert(encoder: nn.Module, embedding_dim: int) -> onnx.ModelProto:
        weights = [(name, tensor.numpy().tobytes()) for name, tensor in encoder.state_dict().items()]
        key = (type(encoder), embedding_dim, *weights)
        if key not in _converted:
            _converted[key] = _convert(encoder, embedding_dim)
        model = onnx.ModelProto()
        model.CopyFrom(_converted[key])
        return model

    with patch.object(onnx_encoder, "_convert", convert):
        yield
