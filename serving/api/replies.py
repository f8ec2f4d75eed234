"""The replies: from results to messages, with ids in place of rows and histories oldest first."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from re4.bundle.manifest import Manifest
from re4.protos.v1 import retrieval_pb2
from re4.serving.api.batch_handler import RequestResult
from re4.serving.api.validation import CheckedRequest
from re4.serving.batching.brown_out import lowest_effort
from re4.serving.host.threads import thread_pools
from re4.serving.retrieval.pipeline import QueryResult
from re4.serving.settings import ServerSettings
from re4.serving.versions.canary import VersionRouter
from re4.serving.versions.snapshot import Snapshot


def retrieve_reply(result: RequestResult, queue_us: int, request: CheckedRequest) -> bytes:
    """Return the reply of Retrieve, serialised."""
    return result.candidates + _without_candidates(result, queue_us, request).SerializeToString()


def _without_candidates(
    result: RequestResult, queue_us: int, request: CheckedRequest
) -> retrieval_pb2.RetrieveReply:
    snapshot, found = request.snapshot, result.query_result
    version, num_unknown = snapshot.manifest.version, result.num_unknown_history_ids
    if found is None:
        return retrieval_pb2.RetrieveReply(
            version=version,
            num_unknown_history_ids=num_unknown,
            is_popularity_fallback=True,
            is_history_missing=request.is_history_missing,
            is_new=marks(result),
            is_canary=snapshot.is_canary,
        )
    times = found.times
    return retrieval_pb2.RetrieveReply(
        version=version,
        num_unknown_history_ids=num_unknown,
        interests=interests(found, snapshot) if request.return_interests else None,
        reasons=reasons(found, request.num_reasons, snapshot) if request.num_reasons else None,
        stage_times=retrieval_pb2.StageTimes(
            queue_us=queue_us,
            gather_us=times.gather_us,
            encode_us=times.encode_us,
            search_us=times.search_us,
            merge_us=times.merge_us,
            batch_size=times.batch_size,
        ),
        is_canary=snapshot.is_canary,
        search_effort=1.0 if request.options is None else request.options.effort,
        is_history_missing=request.is_history_missing,
        is_new=marks(result),
    )


def marks(result: RequestResult) -> list[bool]:
    """Return whether each candidate is a new item; empty without an exploration quota."""
    return [] if result.is_new_M is None else result.is_new_M.tolist()


def encode_reply(result: RequestResult, snapshot: Snapshot) -> retrieval_pb2.EncodeReply:
    """Return the reply of Encode."""
    assert result.query_result is not None, "without a search there is no fallback"
    return retrieval_pb2.EncodeReply(
        interests=interests(result.query_result, snapshot),
        version=snapshot.manifest.version,
        num_unknown_history_ids=result.num_unknown_history_ids,
        is_canary=snapshot.is_canary,
    )


def info_reply(
    snapshot: Snapshot,
    settings: ServerSettings,
    *,
    failed_version: str,
    failure: str,
    hidden_failure: str,
    live_sequence: int,
    live_failure: str,
    server_version: str,
    is_browned_out: bool,
    history_store: str,
    history_failure: str,
    router: VersionRouter,
) -> retrieval_pb2.InfoReply:
    """Return the reply of Info."""
    manifest, limits, canary = snapshot.manifest, settings.limits, router.canary
    tried = None if canary is None else canary.version.current().manifest
    num_measured, recall = router.recalls.get(manifest.version, (0, 0.0))
    num_measured_canary, recall_canary = (
        (0, 0.0) if tried is None else router.recalls.get(tried.version, (0, 0.0))
    )
    floor, hidden, live = settings.brown_out_recall_floor, snapshot.hidden, snapshot.live
    return retrieval_pb2.InfoReply(
        version=manifest.version,
        created_at=manifest.created_at,
        model=manifest.model.name,
        num_interests=manifest.model.num_interests,
        embedding_dim=manifest.model.embedding_dim,
        index=manifest.index.factory or manifest.index.kind,
        num_items=snapshot.num_items,
        item_id_kind=manifest.items.id_kind,
        max_history_length=manifest.model.max_history_length,
        max_num_candidates=limits.max_num_candidates,
        max_num_history_ids=limits.max_num_history_ids,
        max_num_excluded_ids=limits.max_num_excluded_ids,
        max_num_users=limits.max_num_users,
        max_message_bytes=limits.max_message_bytes,
        failed_version=failed_version,
        failure=failure,
        num_hidden_items=(0 if hidden is None else hidden.num_rows)
        + (0 if live is None else live.num_hidden),
        hidden_failure=hidden_failure,
        num_live_items=0 if live is None else live.num_visible,
        live_sequence=live_sequence,
        live_failure=live_failure,
        max_num_edited_items=limits.max_num_edited_items,
        index_recall=_index_recall(manifest),
        online_recall=recall,
        num_recall_samples=num_measured,
        has_titles=snapshot.has_titles,
        effective_interests=manifest.effective_interests,
        canary_version="" if tried is None else tried.version,
        canary_index_recall=0.0 if tried is None else _index_recall(tried),
        canary_online_recall=recall_canary,
        num_canary_recall_samples=num_measured_canary,
        canary_share=0.0 if canary is None else canary.share,
        canary_is_shadow=canary is not None and canary.is_shadow,
        canary_failure=router.failure,
        server_version=server_version,
        num_processes=settings.num_processes,
        attributes=[
            retrieval_pb2.Attribute(
                name=each.name,
                num_values=each.num_values,
                is_multi_valued=each.is_multi_valued,
                order=snapshot.attributes[each.name].order or "",
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
        history_store=history_store,
        history_failure=history_failure,
        index_failure=snapshot.index_failure,
        max_num_events=limits.max_num_events,
        max_history_events=settings.history.max_history_events,
        settings=[
            retrieval_pb2.Setting(name=name, value=value, source=source)
            for name, value, source in settings.effective()
        ],
    )


def _index_recall(manifest: Manifest) -> float:
    return (manifest.index.recall or 0.0) if manifest.index.search_parameters else 1.0


def _item_ids(rows: NDArray[np.int64], snapshot: Snapshot) -> retrieval_pb2.ItemIds:
    """Return the ids of rows, in the field of the catalogue's kind."""
    ids = snapshot.item_ids.ids(rows)
    if snapshot.item_ids.kind == "string":
        return retrieval_pb2.ItemIds(strings=ids)  # type: ignore[arg-type]  # the kind says so
    return retrieval_pb2.ItemIds(ints=ids)  # type: ignore[arg-type]


def interests(result: QueryResult, snapshot: Snapshot) -> retrieval_pb2.Interests:
    """Return a result's interests, and their attention over the history, oldest first."""
    num_interests, embedding_dim = result.interests_KD.shape
    return retrieval_pb2.Interests(
        num_interests=num_interests,
        embedding_dim=embedding_dim,
        vectors=result.interests_KD.reshape(-1).tolist(),
        attention=result.attention_KL[:, ::-1].reshape(-1).tolist(),
        attended_items=_item_ids(result.query.history_rows_L[::-1], snapshot),
    )


def reasons(result: QueryResult, num_reasons: int, snapshot: Snapshot) -> retrieval_pb2.Reasons:
    """Return the explanations of a result's candidates: so many history items for each interest."""
    found = top_attended(result.attention_KL, result.query.history_rows_L, num_reasons)
    return retrieval_pb2.Reasons(
        num_items=found.rows_KR.shape[1],
        items=_item_ids(found.rows_KR.reshape(-1), snapshot),
        weights=found.weights_KR.reshape(-1).tolist(),
    )


class TopAttended(NamedTuple):
    """The history items to which each interest attends most, by falling attention."""

    rows_KR: NDArray[np.int64]
    weights_KR: NDArray[np.float32]


def top_attended(
    attention_KL: NDArray[np.float32], history_rows_L: NDArray[np.int64], num_reasons: int
) -> TopAttended:
    """Return the most attended items; among equally attended ones the newer are first.

    The weights of an item that occurs more than once in the history are added.

    Args:
        attention_KL: Over the history, newest first.
        history_rows_L: Item rows, newest first.
        num_reasons: R; fewer are returned where the history has fewer items.
    """
    rows_I, first_I, items_L = np.unique(history_rows_L, return_index=True, return_inverse=True)
    weights_KI = np.zeros((len(attention_KL), len(rows_I)), np.float32)
    np.add.at(weights_KI.T, items_L, attention_KL.T)
    newest_first = np.argsort(first_I)
    weights_KI, rows_I = weights_KI[:, newest_first], rows_I[newest_first]
    order_KR = np.argsort(-weights_KI, axis=1, kind="stable")[:, :num_reasons]
    return TopAttended(rows_I[order_KR], np.take_along_axis(weights_KI, order_KR, 1))
