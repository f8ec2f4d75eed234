"""Users' events, written as lists, as the sequences that training reads."""

import numpy as np

from re4.training.data.dataset import Sequences


def sequences(*users) -> Sequences:
    """Make a training split of these users' item rows, oldest first."""
    return Sequences(
        items_E=np.concatenate([np.array(user, dtype=np.int32) for user in users]),
        offsets_U1=np.cumsum([0, *map(len, users)]).astype(np.int64),
        num_history_U=np.array([len(user) for user in users], dtype=np.int32),
    )
