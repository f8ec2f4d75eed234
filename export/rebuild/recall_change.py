"""The comparison with the live version on today's held-out users: did the new model get better?

Both versions rank their items exactly, by their own encoders and vectors, for test users of the run's data
set that neither model was trained on. Items are matched by id. Only items of the new version count: an item
that the live version does not have is a miss of it, and an item that left the catalogue is no target. Items
that start from their attributes and that the live version does not have are left out: they take places of its
items by design, and no held-out user has chosen them.

Legend: U users, M candidates, K interests, D embedding, N items of a version, I items of the data set.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds
from re4.bundle.scoring.exact_search import exact_search
from re4.common.errors import DataError
from re4.exporting.assemble import AssembledVersion, interests_of
from re4.exporting.catalogue.histories import evenly_spaced
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.sources.published_version import PublishedVersion
from re4.exporting.sources.version_inputs import TRAINED_ON
from re4.exporting.storage.mapped_vectors import chunks
from re4.training.data.dataset import Dataset, Sequences
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.protocol import history_and_targets
from re4.training.evaluation.run_evaluation import known_histories
from re4.training.run.run import Run
from re4.training.run.trained_on import TrainedOn, unseen_users

_log = logging.getLogger(__name__)

NUM_CANDIDATES: Final = 50
MIN_USERS: Final = 20
"""With fewer users the interval says nothing."""
_MAX_SCORES: Final = 4_000_000_000
"""Scores computed for each version, while that leaves `_FEWEST_USERS`."""
_FEWEST_USERS: Final = 200
_MOST_USERS: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class RecallChange:
    """Recall@50 of the new and of the live version on the same users."""

    num_users: int
    recall_50: float
    live_recall_50: float
    change: Interval
    """New minus live, paired by user."""

    def to_json(self) -> dict[str, Any]:
        """Return all values as a JSON object."""
        return asdict(self)


def compare_with_live(
    assembled: AssembledVersion, item_ids: ItemIds, run: Run, live: PublishedVersion
) -> RecallChange | str:
    """Compare a version with the live one; return the reason where they cannot be compared.

    Args:
        assembled: The new version.
        item_ids: Its ids.
        run: The run that it was made of.
        live: The live version.
    """
    recorded = live.manifest.lineage.get(TRAINED_ON)
    if not isinstance(recorded, list):
        return "the live version does not record the data sets of its training"
    live_trained_on = [TrainedOn(**each) for each in recorded]  # type: ignore[arg-type]
    try:
        dataset = run.open_dataset()
    except DataError as error:
        return str(error)
    unseen = unseen_users([*run.trained_on()[1:], *live_trained_on], dataset, "test")
    if unseen.unknown:
        return f"it cannot be known whose users these trainings saw: {', '.join(unseen.unknown)}"
    if {dataset.info.item_id_kind} != {item_ids.kind, live.item_ids.kind}:
        return "the ids of the items are of different kinds"
    dataset_ids = dataset.items()["item_id"].to_list()
    ours_I, theirs_I = (each.rows(dataset_ids) for each in (item_ids, live.item_ids))
    chosen = _chosen_users(dataset, unseen.is_unseen_U, ours_I, assembled, live)
    if len(chosen) < MIN_USERS:
        return f"{len(chosen)} held-out users that neither training saw are too few; {MIN_USERS} are needed"
    is_chosen_U = np.zeros(dataset.test.num_users, np.bool_)
    is_chosen_U[chosen] = True
    held_out = dataset.test.only(is_chosen_U)
    model, live_model = assembled.inputs.model, live.manifest.model
    vectors_ND = assembled.inputs.vectors_ND
    shared = live.item_ids.rows(item_ids.ids(np.arange(assembled.items.num_items)))
    is_first_N = np.zeros(len(shared), np.bool_)
    is_first_N[assembled.inputs.cold_rows] = True
    is_first_N &= shared < 0
    ours_U = _recalls(
        held_out,
        ours_I,
        ours_I,
        assembled.encoder,
        vectors_ND,
        model.max_history_length,
        among_rows=np.flatnonzero(~is_first_N) if is_first_N.any() else None,
    )
    theirs_U = _recalls(
        held_out,
        theirs_I,
        ours_I,
        live.encoder,
        live.vectors_ND,
        live_model.max_history_length,
        among_rows=np.sort(shared[shared >= 0]),
    )
    return RecallChange(
        num_users=len(chosen),
        recall_50=float(ours_U.mean()),
        live_recall_50=float(theirs_U.mean()),
        change=Interval.of(ours_U - theirs_U),
    )


def _chosen_users(
    dataset: Dataset,
    is_unseen_U: NDArray[np.bool_],
    ours_I: NDArray[np.int64],
    assembled: AssembledVersion,
    live: PublishedVersion,
) -> NDArray[np.int64]:
    """Return evenly spaced unseen users with a target of the new version, as many as time allows."""
    test = dataset.test
    users_E = np.repeat(np.arange(test.num_users), np.diff(test.offsets_U1))
    place_E = np.arange(test.num_events) - test.offsets_U1[users_E]
    is_target_E = (place_E >= test.num_history_U[users_E]) & (ours_I[test.items_E] >= 0)
    has_target_U = np.bincount(users_E[is_target_E], minlength=test.num_users) > 0
    users = np.flatnonzero(is_unseen_U & has_target_U)
    num_scores = max(
        len(vectors_ND) * model.num_interests
        for vectors_ND, model in (
            (assembled.inputs.vectors_ND, assembled.inputs.model),
            (live.vectors_ND, live.manifest.model),
        )
    )
    most = min(_MOST_USERS, max(_FEWEST_USERS, _MAX_SCORES // num_scores))
    return users[evenly_spaced(len(users), most)]


def _recalls(
    held_out: Sequences,
    rows_I: NDArray[np.int64],
    counted_I: NDArray[np.int64],
    encoder: OnnxEncoder,
    vectors_ND: NDArray[np.float32],
    max_history_length: int,
    among_rows: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return the Recall@50 of each user by one version; 0 where it knows nothing of the history.

    Args:
        held_out: The users, in rows of the data set.
        rows_I: The version's row of each item of the data set; -1 for an unknown one.
        counted_I: At least 0 for the items that count as targets.
        encoder: The version's.
        vectors_ND: The version's.
        max_history_length: Of its model.
        among_rows: The rows that may be found, ascending; None for all.
    """
    known, users_C = known_histories(held_out, rows_I)
    rows_CL, lengths_C = known.histories(max_history_length)
    top_UM = np.full((held_out.num_users, NUM_CANDIDATES), -1, np.int64)
    if len(users_C):
        interests_CKD = interests_of(encoder, vectors_ND, rows_CL, lengths_C)
        found = exact_search(
            interests_CKD, vectors_ND, NUM_CANDIDATES, among_rows=among_rows, read_chunks=chunks
        )[1]
        top_UM[users_C, : found.shape[1]] = found
    recalls_U = np.empty(held_out.num_users)
    for user, top_M in enumerate(top_UM):
        targets = np.unique(history_and_targets(held_out, user)[1])
        wanted = rows_I[targets[counted_I[targets] >= 0]]
        recalls_U[user] = np.isin(wanted[wanted >= 0], top_M).sum() / len(wanted)
    return recalls_U
