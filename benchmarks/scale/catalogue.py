"""A made-up catalogue of any size, and an encoder whose interests lie among its items, ready for export.

The encoder is Re4's own with weights drawn at random and sharp attention: each interest dwells on the items
of one or two of a history's tastes, as those of a trained one do.
"""

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import torch

from benchmarks.vectors import VectorSpace
from bundle.arrays import open_array
from bundle.manifest import ModelInfo
from export.mapped import digest_of
from export.material import Material, TrainedEncoder
from training.config import TrainConfig
from training.encoders import build_encoder

NUM_INTERESTS: Final = 4
HISTORY_LENGTH: Final = 20

_SHARPNESS: Final = 20.0
"""Attention logits of a new encoder differ by a tenth or two; times this, by several units."""
_ID_DIGITS: Final = 10


def make_catalogue(folder: Path, space: VectorSpace, *, num_requests: int) -> Material:
    """Write a catalogue's vectors into a folder, where they are not there yet, and draw the rest.

    Args:
        folder: Gets `vectors.npy`, memory-mapped from there.
        space: Where items are drawn from.
        num_requests: How many histories are drawn.
    """
    path = folder / "vectors.npy"
    if not path.exists():
        space.write_items(path)
    vectors_ND = open_array(path, "<f4", (space.num_items, space.embedding_dim))
    config = TrainConfig(
        num_interests=NUM_INTERESTS,
        embedding_dim=space.embedding_dim,
        max_history_length=HISTORY_LENGTH,
        position=False,
        head=False,
    )
    torch.manual_seed(space.seed)
    encoder = build_encoder(config).eval()
    with torch.no_grad():
        dict(encoder.named_parameters())["w.weight"].mul_(_SHARPNESS)
    rows_PL, lengths_P = space.histories(num_requests, length=HISTORY_LENGTH, num_tastes=NUM_INTERESTS)
    numbers = pl.Series("item_id", np.arange(space.num_items))
    return Material(
        where=str(folder),
        vectors_ND=vectors_ND,
        items=("SKU-" + numbers.cast(pl.String).str.zfill(_ID_DIGITS)).alias("item_id").to_frame(),
        counts_N=space.num_items // np.arange(1, space.num_items + 1),
        rows_PL=rows_PL,
        lengths_P=lengths_P,
        encoder=TrainedEncoder(module=encoder, num_interests=NUM_INTERESTS),
        model=ModelInfo(
            name=config.model,
            num_interests=NUM_INTERESTS,
            embedding_dim=space.embedding_dim,
            max_history_length=HISTORY_LENGTH,
            space=digest_of(vectors_ND),
        ),
        evaluation={},
        lineage={"made_up": True, "seed": space.seed},
    )
