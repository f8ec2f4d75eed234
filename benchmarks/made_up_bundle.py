"""A bundle of made-up items, and histories to ask it with: a server at sizes that no public run has.

    python -m benchmarks.made_up_bundle FOLDER --num-items 1000000

Writes FOLDER/bundles (for `re4 serve`) and FOLDER/data, which `re4 bench` takes as `--data`. The encoder is
Re4's, not trained: its attentions are sharp, and W2 is the identity, so that an interest is the mean of a few
items of the history, as `vectors.py` says it is. Ids are strings of ten characters. The index is chosen,
built and tuned as `re4 export` does it.

Legend: N items, D embedding, Q histories, L history length.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import numpy as np
import polars as pl
import torch
import typer
from numpy.typing import NDArray

from benchmarks.vectors import VectorSpace
from export.choosing import AUTO
from export.exporter import publish_run
from export.tuning import Goal
from re4.console import say
from training.config import TrainConfig
from training.encoders.re4 import Re4Encoder

NUM_PROBES: Final = 2_000
_SHARPNESS: Final = 8.0
"""What fresh attention weights are multiplied with."""


@dataclass(frozen=True, kw_only=True)
class MadeUpModel:
    """What export needs of a model."""

    encoder: Re4Encoder
    path: Path
    """The item vectors, a .npy file."""

    @property
    def item_table_ND(self) -> torch.Tensor:
        """The item vectors."""
        return torch.from_numpy(np.load(self.path, mmap_mode="c"))

    def as_seen(self, vectors: torch.Tensor) -> torch.Tensor:
        """They themselves."""
        return vectors


@dataclass(kw_only=True, eq=False)
class MadeUpRun:
    """What export needs of a run, without training."""

    path: Path
    """A folder for the item vectors."""
    space: VectorSpace
    config: TrainConfig

    def items(self) -> pl.DataFrame:
        """The ids, in row order."""
        return pl.DataFrame({"item_id": [f"B{row:09d}" for row in range(self.space.num_items)]})

    def item_counts_N(self) -> NDArray[np.int64]:
        """Falling with the row."""
        return np.arange(self.space.num_items, 0, -1)

    def load_model(self) -> MadeUpModel:
        """The encoder, and where the vectors are."""
        torch.manual_seed(self.space.seed)
        encoder = Re4Encoder(self.config)
        with torch.no_grad():
            for layer in (encoder.W1, encoder.w):
                layer.weight.mul_(_SHARPNESS)
        vectors = self.path / "vectors.npy"
        self.space.write_items(vectors)
        return MadeUpModel(encoder=encoder.eval(), path=vectors)

    @cached_property
    def histories(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two thirds to tune the index with, the rest to ask with; newest first, and their lengths."""
        return self.space.histories(3 * NUM_PROBES // 2, length=self.config.max_history_length)

    def probe_histories(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Histories for tuning and for golden queries, newest first, and their lengths."""
        rows_QL, lengths_Q = self.histories
        return rows_QL[:NUM_PROBES], lengths_Q[:NUM_PROBES]

    def evaluation(self) -> dict[str, Any]:
        """Nothing: it was not trained."""
        return {}

    def write_data(self, folder: Path) -> None:
        """Write the histories that nothing was tuned with, oldest first, as a data set's test users."""
        rows_QL, lengths_Q = (part[NUM_PROBES:] for part in self.histories)
        oldest_first = [rows_L[:length][::-1] for rows_L, length in zip(rows_QL, lengths_Q, strict=True)]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "test.items.npy", np.concatenate(oldest_first).astype(np.int32))
        np.save(folder / "test.offsets.npy", np.concatenate([[0], np.cumsum(lengths_Q)]))
        np.save(folder / "test.num_history.npy", lengths_Q)
        self.items().write_parquet(folder / "items.parquet")


def main(
    folder: Annotated[Path, typer.Argument(help="Gets bundles/ and data/.")],
    num_items: Annotated[int, typer.Option(min=1)] = 1_000_000,
    embedding_dim: Annotated[int, typer.Option(min=2)] = 64,
    num_interests: Annotated[int, typer.Option(min=1)] = 4,
    index: Annotated[str, typer.Option(help="As for re4 export.")] = AUTO,
    recall: Annotated[float, typer.Option(help="As for re4 export.")] = 0.95,
    num_candidates: Annotated[int, typer.Option(help="As for re4 export.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed gives the same vectors.")] = 0,
) -> None:
    """Write a bundle version of made-up items, and histories for it."""
    config = TrainConfig(num_interests=num_interests, embedding_dim=embedding_dim).resolve(num_items)
    space = VectorSpace(num_items=num_items, embedding_dim=embedding_dim, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as scratch:
        run = MadeUpRun(path=Path(scratch), space=space, config=config)
        goal = Goal(recall=recall, num_candidates=num_candidates)
        version = publish_run(run, folder / "bundles", index=index, goal=goal)
        run.write_data(folder / "data")
    say(f"{folder / 'bundles'}: {version}")


if __name__ == "__main__":
    typer.run(main)
