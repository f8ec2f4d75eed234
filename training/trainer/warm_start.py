"""Warm start: a training on newer data begins with the weights of an earlier run.

Encoder and flows start from the earlier run's weights. Items are matched by their ids, because rows
are numbered by the popularity in one data set. A known item starts from its trained vector. A new
item starts from its initial vector; SVD vectors are first mapped into the trained space, by the
linear map that fits the known items best (least squares).
"""

import numpy as np
import torch
from numpy.typing import NDArray

from re4.common.errors import UsageError
from re4.settings.fields import option_name
from re4.training.config import TrainConfig
from re4.training.model.model import MultiInterestModel

_SHAPING = (
    "model",
    "num_interests",
    "embedding_dim",
    "attention_dim",
    "max_history_length",
    "num_blocks",
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
    if config.initial_vectors == "fitted":
        raise UsageError(
            f"--model {config.model} is fitted to a log as a whole, in seconds: it cannot go on from a run. "
            "Train without --from."
        )
    for name in _SHAPING:
        ours, theirs = getattr(config, name), getattr(previous, name)
        if ours != theirs:
            raise UsageError(
                f"{option_name(name)} is {ours}, but the run to go on from has {theirs}: its weights would "
                "not fit. Leave the option out, or train without --from."
            )


def warm_start(model: MultiInterestModel, previous: MultiInterestModel, rows_N: NDArray[np.int64]) -> None:
    """Load the earlier model's weights into a model that has its initial item vectors.

    Args:
        model: the new model.
        previous: the earlier run's model.
        rows_N: from `match_items`.
    """
    known_N = torch.from_numpy(rows_N >= 0)
    vectors_ND = model.whole_vectors_ND().clone()
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
