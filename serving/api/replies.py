"""From answers to messages: rows to ids, newest first to oldest first. Knows no rule of retrieval."""

import numpy as np
from numpy.typing import NDArray

from re4.protos.v1 import retrieval_pb2
from re4.serving.api.batch_handler import Answered
from re4.serving.api.explanations import top_attended
from re4.serving.api.validation import CheckedRequest
from re4.serving.batching.brown_out import lowest_effort
from re4.serving.host.threads import thread_pools
from re4.serving.retrieval.pipeline import Answer, Query
from re4.serving.settings import ServerSettings
from re4.serving.versions.snapshot import Snapshot


def retrieve_reply(answered: Answered, queue_us: int, request: CheckedRequest, snapshot: Snapshot) -> bytes:
    """The reply of Retrieve, serialised."""
    return answered.candidates + _rest(answered, queue_us, request, snapshot).SerializeToString()


def _rest(
    answered: Answered, queue_us: int, request: CheckedRequest, snapshot: Snapshot
) -> retrieval_pb2.RetrieveReply:
    """All but the candidates."""
    version, answer = snapshot.manifest.version, answered.answer
    if answer is None:
        return retrieval_pb2.RetrieveReply(
            version=version,
            num_unknown_history_ids=answered.num_unknown_history_ids,
            is_popularity_fallback=True,
        )
    times = answer.times
    return retrieval_pb2.RetrieveReply(
        version=version,
        num_unknown_history_ids=answered.num_unknown_history_ids,
        interests=interests(answer, answered.query, snapshot) if request.return_interests else None,
        reasons=reasons(answer, answered.query, request.num_reasons, snapshot)
        if request.num_reasons
        else None,
        stage_times=retrieval_pb2.StageTimes(
            queue_us=queue_us,
            gather_us=times.gather_us,
            encode_us=times.encode_us,
            search_us=times.search_us,
            merge_us=times.merge_us,
            batch_size=times.batch_size,
        ),
        search_effort=1.0 if request.terms is None else request.terms.effort,
    )


def encode_reply(answered: Answered, snapshot: Snapshot) -> retrieval_pb2.EncodeReply:
    """The reply of Encode."""
    assert answered.answer is not None, "without a search there is no fallback"
    return retrieval_pb2.EncodeReply(
        interests=interests(answered.answer, answered.query, snapshot),
        version=snapshot.manifest.version,
        num_unknown_history_ids=answered.num_unknown_history_ids,
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


def reasons(answer: Answer, query: Query, num_reasons: int, snapshot: Snapshot) -> retrieval_pb2.Reasons:
    """The history items behind each interest's candidates, so many for each."""
    found = top_attended(answer.attention_KL, query.history_rows_L, num_reasons)
    return retrieval_pb2.Reasons(
        num_items=found.rows_KR.shape[1],
        items=item_ids(found.rows_KR.reshape(-1), snapshot),
        weights=found.weights_KR.reshape(-1).tolist(),
    )
