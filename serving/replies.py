"""From answers to messages: rows to ids, newest first to oldest first. Knows no rule of retrieval."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protos.v1 import retrieval_pb2
from serving import wire
from serving.brown_out import lowest_effort
from serving.pipeline import Answer, Query
from serving.reasons import top_attended
from serving.requests import CheckedRequest
from serving.selection import Selection
from serving.settings import ServerSettings
from serving.snapshot import Snapshot
from serving.thread_pools import thread_pools

_ROWS_AT_ONCE: Final = 1 << 16


def retrieve_reply(answer: Answer, queue_us: int, checked: CheckedRequest, snapshot: Snapshot) -> bytes:
    """The reply of Retrieve for an answer from the index, serialised."""
    times = answer.times
    rest = retrieval_pb2.RetrieveReply(
        version=snapshot.manifest.version,
        num_unknown_history_ids=checked.num_unknown_history_ids,
        interests=interests(answer, checked.query, snapshot) if checked.return_interests else None,
        reasons=reasons(answer, checked, snapshot) if checked.num_reasons else None,
        stage_times=retrieval_pb2.StageTimes(
            queue_us=queue_us,
            gather_us=times.gather_us,
            encode_us=times.encode_us,
            search_us=times.search_us,
            merge_us=times.merge_us,
            batch_size=times.batch_size,
        ),
        search_effort=1.0 if checked.query.terms is None else checked.query.terms.effort,
    )
    return wire.candidates(answer.merged, snapshot.item_ids) + rest.SerializeToString()


def popular_reply(checked: CheckedRequest, snapshot: Snapshot) -> retrieval_pb2.RetrieveReply:
    """The reply of Retrieve with the most popular items: scores and interest numbers are 0."""
    allowed = popular_rows(checked, snapshot)
    return retrieval_pb2.RetrieveReply(
        items=item_ids(allowed, snapshot),
        scores=[0.0] * len(allowed),
        interest_numbers=[0] * len(allowed),
        version=snapshot.manifest.version,
        num_unknown_history_ids=checked.num_unknown_history_ids,
        is_popularity_fallback=True,
    )


def popular_rows(checked: CheckedRequest, snapshot: Snapshot) -> NDArray[np.int64]:
    """Rows of the most popular items that the request allows, most popular first.

    A version lists its most popular items only; where too few of those are allowed, others follow, in
    catalogue order.
    """
    query = checked.query
    conditions = query.terms.conditions if query.terms is not None else ()
    hidden = snapshot.selections.hidden
    selection = None if hidden is None else hidden.others
    if conditions:
        selection = snapshot.selections.of(conditions)

    def allowed(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = rows[~np.isin(rows, query.excluded_rows)]
        return rows if selection is None else rows[selection.hold(rows)]

    found = allowed(snapshot.popular_rows)[: query.num_candidates]
    for rows in _blocks(selection, snapshot.manifest.items.num_items):
        if len(found) == query.num_candidates:
            break
        others = allowed(rows[~np.isin(rows, found)])
        found = np.concatenate([found, others[: query.num_candidates - len(found)]])
    return found


def _blocks(selection: Selection | None, num_items: int) -> Iterator[NDArray[np.int64]]:
    """Rows that may be allowed, some at a time."""
    if selection is not None and selection.few_rows_S is not None:
        yield selection.few_rows_S
        return
    for start in range(0, num_items, _ROWS_AT_ONCE):
        yield np.arange(start, min(start + _ROWS_AT_ONCE, num_items))


def encode_reply(answer: Answer, checked: CheckedRequest, snapshot: Snapshot) -> retrieval_pb2.EncodeReply:
    """The reply of Encode."""
    return retrieval_pb2.EncodeReply(
        interests=interests(answer, checked.query, snapshot),
        version=snapshot.manifest.version,
        num_unknown_history_ids=checked.num_unknown_history_ids,
    )


def info_reply(
    snapshot: Snapshot,
    settings: ServerSettings,
    *,
    failed_version: str,
    failure: str,
    hidden_failure: str,
    server_version: str,
    is_browned_out: bool,
) -> retrieval_pb2.InfoReply:
    """The reply of Info."""
    manifest, limits = snapshot.manifest, settings.limits
    floor = settings.brown_out_recall_floor
    return retrieval_pb2.InfoReply(
        version=manifest.version,
        created_at=manifest.created_at,
        model=manifest.model.name,
        num_interests=manifest.model.num_interests,
        embedding_dim=manifest.model.embedding_dim,
        index=manifest.index.factory or manifest.index.kind,
        num_items=manifest.items.num_items,
        item_id_kind=manifest.items.id_kind,
        max_history_length=manifest.model.max_history_length,
        max_num_candidates=limits.max_num_candidates,
        max_num_history_ids=limits.max_num_history_ids,
        max_num_excluded_ids=limits.max_num_excluded_ids,
        max_num_users=limits.max_num_users,
        max_message_bytes=limits.max_message_bytes,
        failed_version=failed_version,
        failure=failure,
        num_hidden_items=0 if snapshot.selections.hidden is None else snapshot.selections.hidden.num_rows,
        hidden_failure=hidden_failure,
        server_version=server_version,
        num_processes=settings.num_processes,
        attributes=[
            retrieval_pb2.Attribute(
                name=each.name, num_values=each.num_values, is_multi_valued=each.is_multi_valued
            )
            for each in manifest.items.attributes
        ],
        max_num_filters=limits.max_num_filters,
        max_num_filter_values=limits.max_num_filter_values,
        min_search_effort=limits.min_search_effort,
        max_search_effort=limits.max_search_effort,
        max_num_reasons=limits.max_num_reasons,
        brown_out_effort=0.0 if floor is None else lowest_effort(manifest.index, floor) or 1.0,
        is_browned_out=is_browned_out,
        thread_pools=thread_pools(),
        settings=[
            retrieval_pb2.Setting(name=name, value=value, source=source)
            for name, value, source in settings.effective()
        ],
    )


def item_ids(rows: NDArray[np.int64], snapshot: Snapshot) -> retrieval_pb2.ItemIds:
    """The ids of rows, in the field of the catalogue's kind."""
    ids = snapshot.item_ids.ids(rows)
    if snapshot.item_ids.kind == "string":
        return retrieval_pb2.ItemIds(strings=ids)  # type: ignore[arg-type]  # the kind says so
    return retrieval_pb2.ItemIds(ints=ids)  # type: ignore[arg-type]


def interests(answer: Answer, query: Query, snapshot: Snapshot) -> retrieval_pb2.Interests:
    """An answer's interests, and their attention over the history, oldest first."""
    num_interests, embedding_dim = answer.interests_KD.shape
    return retrieval_pb2.Interests(
        num_interests=num_interests,
        embedding_dim=embedding_dim,
        vectors=answer.interests_KD.reshape(-1).tolist(),
        attention=answer.attention_KL[:, ::-1].reshape(-1).tolist(),
        attended_items=item_ids(query.history_rows_L[::-1], snapshot),
    )


def reasons(answer: Answer, checked: CheckedRequest, snapshot: Snapshot) -> retrieval_pb2.Reasons:
    """The history items behind each interest's candidates."""
    found = top_attended(answer.attention_KL, checked.query.history_rows_L, checked.num_reasons)
    return retrieval_pb2.Reasons(
        num_items=found.rows_KR.shape[1],
        items=item_ids(found.rows_KR.reshape(-1), snapshot),
        weights=found.weights_KR.reshape(-1).tolist(),
    )
