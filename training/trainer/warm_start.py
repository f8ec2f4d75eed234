"""Warm start: a training on newer data begins with the weights of an earlier run.

Encoder and flows start from the earlier run's weights. Items are matched by their ids, because rows
are numbered by the popularity in one data set. A known item starts from its trained vector. A new
item starts from its initial vector; SVD vectors are first mapped into the trained space, by the
linear map that fits the known items best (least squares).
"""

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from re4.common.errors import UsageError
from re4.settings.fields import option_name
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset, Sequences
from re4.training.evaluation.protocol import Evaluation, rank, summarise
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run

_SHAPING = (
    "model",
    "num_interests",
    "embedding_dim",
    "attention_dim",
    "max_history_length",
    "position",
    "head",
    "scores",
    "construct_dim",
)
"""Settings that the shape or the meaning of the weights depends on."""


def check_compatible(config: TrainConfig, previous: TrainConfig) -> None:
    """Refuse settings with which the earlier run's weights do not fit; both are resolved.

    Raises:
        UsageError: the first such setting.
    """
    for name in _SHAPING:
        ours, theirs = getattr(config, name), getattr(previous, name)
        if ours != theirs:
            raise UsageError(
                f"{option_name(name)} is {ours}, but the run to go on from has {theirs}: its weights would "
                "not fit. Leave the option out, or train without --from."
            )


def previous_rows(dataset: Dataset, previous: Run) -> NDArray[np.int64]:
    """Return the row that each item of the data set had in the earlier run, int64 [N]; -1 for a new
    item.

    Raises:
        UsageError: the two have no item in common, or ids of different kinds.
    """
    ids, theirs = dataset.items()["item_id"], previous.items()["item_id"]
    if ids.dtype != theirs.dtype:
        raise UsageError(
            f"{dataset.path} has {ids.dtype} item ids, {previous.path} has {theirs.dtype}: they cannot be "
            "matched. Prepare the data with ids of the same kind, or train without --from."
        )
    numbered = theirs.to_frame().with_row_index("row")
    found = ids.to_frame().join(numbered, on="item_id", how="left", maintain_order="left")
    rows_N = found["row"].cast(pl.Int64).fill_null(-1).to_numpy()
    if rows_N.max() < 0:
        raise UsageError(
            f"{dataset.path} and {previous.path} have no item in common: there is nothing to go on from. "
            "Train without --from."
        )
    return rows_N


def warm_start(model: MultiInterestModel, previous: MultiInterestModel, rows_N: NDArray[np.int64]) -> None:
    """Load the earlier model's weights into a model that has its initial item vectors.

    Args:
        model: the new model.
        previous: the earlier run's model.
        rows_N: from `previous_rows`.
    """
    known_N = torch.from_numpy(rows_N >= 0)
    vectors_ND = model.item_embedding.weight.detach().clone()
    trained_CD = previous.item_embedding.weight.detach()[torch.from_numpy(rows_N[rows_N >= 0])]
    if model.config.initial_vectors == "svd":
        before_CD = vectors_ND[known_N].double()
        into_trained_DD = torch.linalg.lstsq(before_CD, trained_CD.double(), driver="gelsd").solution
        vectors_ND = (vectors_ND.double() @ into_trained_DD).float()
    vectors_ND[known_N] = trained_CD
    model.encoder.load_state_dict(previous.encoder.state_dict())
    if model.reconstruct is not None and previous.reconstruct is not None:
        model.reconstruct.load_state_dict(previous.reconstruct.state_dict())
    model.set_item_vectors(vectors_ND)


def evaluate_previous(previous: Run, rows_N: NDArray[np.int64], held_out: Sequences) -> Evaluation:
    """Evaluate the earlier run on the users of newer data, without the items that it does not know.

    The history stays in the lists. A user whose whole history is unknown gets an empty list.
    """
    known, users_C = _known_events(held_out, rows_N)
    model = previous.load_model()
    found = rank(model, known, exclude_history=False, title="the earlier run")
    # From rows of the earlier run to rows of the data set; removed items become -1, which is no target.
    row_of = np.full(previous.num_items, -1, np.int64)
    row_of[rows_N[rows_N >= 0]] = np.flatnonzero(rows_N >= 0)
    top_UM = np.full((held_out.num_users, found.top_UM.shape[1]), -1, np.int64)
    top_UM[users_C] = row_of[found.top_UM]
    return summarise(replace(found, top_UM=top_UM), held_out, len(rows_N))


def _known_events(held_out: Sequences, rows_N: NDArray[np.int64]) -> tuple[Sequences, NDArray[np.int64]]:
    """Return the known part of each history in the earlier run's rows, and which users have any."""
    histories = []
    for user in range(held_out.num_users):
        start = int(held_out.offsets_U1[user])
        rows = rows_N[held_out.items_E[start : start + int(held_out.num_history_U[user])]]
        histories.append(rows[rows >= 0])
    users_C = np.flatnonzero([len(rows) > 0 for rows in histories])
    kept = [histories[user] for user in users_C]
    lengths_C = np.array([len(rows) for rows in kept], np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths_C)]).astype(np.int64)
    items = np.concatenate(kept).astype(np.int32) if kept else np.empty(0, np.int32)
    return Sequences(items_E=items, offsets_U1=offsets, num_history_U=lengths_C), users_C
