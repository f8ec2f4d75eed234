"""A synthetic catalogue of any size, and an encoder whose interests lie among its items, ready for export.

The encoder is Re4's own with random weights and a sharpened attention: each interest attends to a few items
of a history, as those of a trained encoder do.

Legend: N items, D embedding, P histories, L history length.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.bundle.array_files import open_array
from re4.exporting.catalogue.items import Ids, Items
from re4.exporting.sources.version_inputs import TrainedEncoder, VersionInputs, model_info
from re4.training.config import TrainConfig
from re4.training.encoders import build_encoder


def synthetic_material(
    folder: Path,
    space: VectorSpace,
    config: TrainConfig,
    *,
    sharpness: Mapping[str, float],
    id_length: int,
    num_histories: int,
) -> VersionInputs:
    """Write a catalogue's vectors into a folder, where they do not exist yet, and draw the rest.

    Args:
        folder: Gets `vectors.npy`, memory-mapped from there.
        space: Distribution of the items.
        config: The encoder's.
        sharpness: Factors of the encoder's weights, by name: the logits of a new encoder's attention hardly
            differ.
        id_length: Characters of an id.
        num_histories: Number of histories.
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
    rows_PL, lengths_P = space.histories(num_histories, length=config.max_history_length)
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
