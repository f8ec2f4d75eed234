"""A bundle of synthetic items, and histories for requests: a server at sizes that no public data set has.

    python -m re4.benchmarks.synthetic.bundle FOLDER --num-items 1000000

Writes FOLDER/bundles (for `re4 serve`) and FOLDER/data, which `re4 bench` takes as `--data`. The encoder is
that of `--model`, not trained. Re4's has sharp attentions and the identity as W2, so that an interest is the
mean of a few items of the history, as in `vectors.py`. Ids are strings of ten characters. The index is made
and tuned as `re4 export` does it.

Legend: N items, D embedding, Q histories, L history length.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import numpy as np
import polars as pl
import torch
import typer
from numpy.typing import NDArray

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.bundle.array_files import open_array
from re4.common.console import print_line
from re4.exporting.catalogue.items import Ids, Items
from re4.exporting.exporter import publish_inputs
from re4.exporting.settings import AUTO, VersionSettings
from re4.exporting.sources.version_inputs import TrainedEncoder, VersionInputs, model_info
from re4.training.config import TrainConfig
from re4.training.encoders import build_encoder
from re4.training.presets import PRESETS

NUM_PROBES: Final = 2_000
"""Histories that the index is tuned with; half as many more are written for requests."""
_SHARPNESS: Final = 8.0
_ID_LENGTH: Final = 10


def main(
    folder: Annotated[Path, typer.Argument(help="Gets bundles/ and data/.")],
    num_items: Annotated[int, typer.Option(min=1)] = 1_000_000,
    embedding_dim: Annotated[int, typer.Option(min=2)] = 64,
    num_interests: Annotated[int, typer.Option(min=1, help="Of models with several interests.")] = 4,
    model: Annotated[str, typer.Option(help="As for re4 train.")] = "re4",
    num_blocks: Annotated[int | None, typer.Option(help="As for re4 train.")] = None,
    index: Annotated[str, typer.Option(help="As for re4 export.")] = AUTO,
    recall: Annotated[float, typer.Option(help="As for re4 export.")] = 0.95,
    num_candidates: Annotated[int, typer.Option(help="As for re4 export.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed gives the same vectors.")] = 0,
) -> None:
    """Write a bundle version of synthetic items, and histories for it."""
    has_several = model in PRESETS and "num_interests" not in PRESETS[model].fixed
    config = TrainConfig(
        model=model,
        num_interests=num_interests if has_several else None,
        embedding_dim=embedding_dim,
        num_blocks=num_blocks,
    ).resolve(num_items)
    space = VectorSpace(num_items=num_items, embedding_dim=embedding_dim, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    settings = VersionSettings(index=index, recall=recall, num_candidates=num_candidates)
    with TemporaryDirectory(dir=folder) as scratch:
        whole = synthetic_inputs(
            Path(scratch),
            space,
            config,
            sharpness={"W1.weight": _SHARPNESS, "w.weight": _SHARPNESS} if model == "re4" else {},
            id_length=_ID_LENGTH,
            num_histories=3 * NUM_PROBES // 2,
        )
        inputs, rows_QL, lengths_Q = hold_out(whole, NUM_PROBES // 2)
        version = publish_inputs(lambda scratch: inputs, folder / "bundles", settings)
    _write_data(folder / "data", inputs.items.ids, rows_QL, lengths_Q)
    print_line(f"{folder / 'bundles'}: {version}")


def _write_data(folder: Path, ids: Ids, rows_QL: NDArray[np.int64], lengths_Q: NDArray[np.int64]) -> None:
    """Write histories, oldest first, as a data set's test users."""
    oldest_first = [rows_L[:length][::-1] for rows_L, length in zip(rows_QL, lengths_Q, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "test.items.npy", np.concatenate(oldest_first).astype(np.int32))
    np.save(folder / "test.offsets.npy", np.concatenate([[0], np.cumsum(lengths_Q)]))
    np.save(folder / "test.num_history.npy", lengths_Q)
    pl.concat(list(ids.chunks())).alias("item_id").to_frame().write_parquet(folder / "items.parquet")


def synthetic_inputs(
    folder: Path,
    space: VectorSpace,
    config: TrainConfig,
    *,
    sharpness: Mapping[str, float],
    id_length: int,
    num_histories: int,
) -> VersionInputs:
    """Write a catalogue's vectors into a folder, where they do not exist yet, and draw the rest.

    `sharpness` has factors of the encoder's weights, by name: the logits of a new encoder's attention hardly
    differ.
    """
    path = folder / "vectors.npy"
    if not path.exists():
        space.write_items(path)
    vectors_ND = open_array(path, "<f4", (space.num_items, space.embedding_dim))
    torch.manual_seed(space.seed)
    encoder = build_encoder(config).eval()
    with torch.no_grad():
        for name, factor in sharpness.items():
            encoder.get_parameter(name).mul_(factor)
    rows_PL, lengths_P = space.histories(num_histories, length=config.L)
    return VersionInputs(
        where=str(folder),
        vectors_ND=vectors_ND,
        items=Items(ids=Ids(space.num_items, partial(_ids, id_length))),
        counts_N=space.num_items // np.arange(1, space.num_items + 1),
        rows_PL=rows_PL,
        lengths_P=lengths_P,
        encoder=TrainedEncoder(module=encoder, num_interests=config.K),
        model=model_info(config, vectors_ND),
        evaluation={},
        lineage={"synthetic": True, "seed": space.seed},
    )


def _ids(length: int, start: int, stop: int) -> pl.Series:
    numbers = pl.int_range(start, stop, eager=True)
    return "B" + numbers.cast(pl.String).str.zfill(length - 1)


def hold_out(
    whole: VersionInputs, num_histories: int
) -> tuple[VersionInputs, NDArray[np.int64], NDArray[np.int64]]:
    """Split off the last histories: return the inputs without them, their rows_PL and their lengths_P."""
    rows_PL, lengths_P = whole.rows_PL, whole.lengths_P
    kept = replace(whole, rows_PL=rows_PL[:-num_histories], lengths_P=lengths_P[:-num_histories])
    return kept, rows_PL[-num_histories:], lengths_P[-num_histories:]


if __name__ == "__main__":
    typer.run(main)
