"""A batch of checked requests to answers, in the compute lane: ids looked up, the pipeline run, ids written.

What is done here is done once for the whole batch; what is done for each call is left to the event loop. All
requests of a batch are answered from one version.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from re4.common.errors import NoUsableHistoryError, Re4Error
from re4.serving.api import candidate_encoding as wire
from re4.serving.api.id_lookup import look_up
from re4.serving.api.popularity_fallback import popular_rows
from re4.serving.api.validation import CheckedRequest
from re4.serving.retrieval.merging import Merged
from re4.serving.retrieval.pipeline import NOTHING_MERGED, Answer, Query
from re4.serving.settings import Fallback
from re4.serving.versions.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What a request came to."""

    query: Query
    """The request in rows."""
    num_unknown_history_ids: int
    answer: Answer | None
    """None where nothing in the history is known, and the candidates are the most popular items."""
    candidates: bytes
    """The candidates' columns, as `wire.candidates` writes them."""
    num_candidates: int


def answer_all(
    requests: Sequence[CheckedRequest], snapshot: Snapshot, fallback: Fallback
) -> list[Answered | Re4Error]:
    """Answer requests that were checked against a version.

    Args:
        requests: 1 to `max_batch_size` of them.
        snapshot: The version.
        fallback: What those get of whose history nothing is known.

    Returns:
        An answer for each, in order; an error in place of one that cannot be given.
    """
    looked_up = look_up(requests, snapshot)
    running = [place for place, found in enumerate(looked_up) if found.query.history_rows_L.size]
    outcomes: list[Answer | Re4Error | None] = [None] * len(requests)
    if running:
        answers = snapshot.pipeline.run([looked_up[place].query for place in running])
        for place, answer in zip(running, answers, strict=True):
            outcomes[place] = answer
    for place, found in enumerate(looked_up):
        if outcomes[place] is None and (fallback is Fallback.NONE or not found.query.num_candidates):
            outcomes[place] = _no_usable_history(found.num_unknown_history_ids, snapshot)
    merged = [
        _merged(outcome, found.query, snapshot) for outcome, found in zip(outcomes, looked_up, strict=True)
    ]
    written = wire.candidates(merged, snapshot.item_ids)
    return [
        outcome
        if isinstance(outcome, Re4Error)
        else Answered(
            query=found.query,
            num_unknown_history_ids=found.num_unknown_history_ids,
            answer=outcome,
            candidates=candidates,
            num_candidates=len(own.rows_M),
        )
        for outcome, found, own, candidates in zip(outcomes, looked_up, merged, written, strict=True)
    ]


def _merged(outcome: Answer | Re4Error | None, query: Query, snapshot: Snapshot) -> Merged:
    """The candidates; the most popular items have scores and interest numbers of 0."""
    if isinstance(outcome, Answer):
        return outcome.merged
    if isinstance(outcome, Re4Error):
        return NOTHING_MERGED
    rows = popular_rows(query, snapshot)
    return Merged(rows, np.zeros(len(rows), np.float32), np.zeros(len(rows), np.int64))


def _no_usable_history(num_unknown: int, snapshot: Snapshot) -> NoUsableHistoryError:
    found = f"none of the {num_unknown} ids in history is" if num_unknown else "history is empty, no id"
    return NoUsableHistoryError(
        f"{found} known to version {snapshot.manifest.version}; give at least one id of its catalogue, or "
        "answer such users otherwise (a server started with --fallback popular gives the most popular items)"
    )
