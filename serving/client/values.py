"""The values that callers give and get, and their conversion to and from messages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from re4.common.attribute_values import AttributeValue, value_text
from re4.common.errors import RequestError, ServerError
from re4.protos.v1 import retrieval_pb2
from re4.serving.protocol.policy_names import enum_name, policy_names
from re4.serving.protocol.status_codes import STATUS_NAMES

ItemIdList: TypeAlias = list[str] | list[int]

_MessageT = TypeVar("_MessageT")


@dataclass(frozen=True, kw_only=True, eq=False)
class Interests:
    """The interest vectors of one user, and the attention of each over the history."""

    vectors: NDArray[np.float32]
    """Interests x embedding dimensions."""
    attention: NDArray[np.float32]
    """Interests x attended items; every row sums to 1."""
    attended_item_ids: ItemIdList
    """The history items that the encoder used, oldest first."""
    version: str
    """The bundle version that answered."""
    num_unknown_history_ids: int
    """The number of history ids that this version does not know."""


@dataclass(frozen=True, kw_only=True)
class AttributeFilter:
    """A condition on one attribute of the catalogue: the item has one of the values, or one in the range.

    A range has one or two of the bounds and no values. It needs an attribute of numbers or dates (`order` in
    `info`); bounds are numbers, dates, or their texts.
    """

    attribute: str
    """Name of the attribute, as `info` lists it."""
    values: Sequence[str] = ()
    """The values, as texts."""
    drop: bool = False
    """Leave out the items that meet the condition, instead of all other items."""
    above: AttributeValue | None = None
    """The lower bound of a range, itself left out."""
    at_least: AttributeValue | None = None
    """The lower bound of a range."""
    below: AttributeValue | None = None
    """The upper bound of a range, itself left out."""
    at_most: AttributeValue | None = None
    """The upper bound of a range."""


class RetrieveOptions(TypedDict, total=False):
    """Options of a request for candidates."""

    exclude_history: bool
    """Leave out the items of the history. Default: False."""
    return_interests: bool
    """Also return the interest vectors and their attention. Default: False."""
    merge_policy: str | None
    """How to merge the lists of the interests: `max-score`, `equal-quota`, `attention-quota`, `round-robin`,
    `soft-quota` or `category-diversity`; None for the policy that the server or the `Retriever` was started
    with."""
    filters: Sequence[AttributeFilter]
    """Only items that pass all of these conditions."""
    diversity: float
    """For `category-diversity`: a candidate gains this much score for each candidate before it that is of
    another category. With 0 the result is that of `max-score`."""
    diversity_attribute: str
    """For `category-diversity`: the name of the attribute that is the category."""
    search_effort: float
    """Search effort of an approximate index, as a multiple of its tuned setting; 0 for 1."""
    num_new_items: int
    """Exploration quota: at most this number of candidates are new items, which no training has seen,
    whatever their scores. 0 for no quota."""
    num_reasons: int
    """For each interest, also return this number of the history items that it attends to most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reasons:
    """The history items that each interest attends to most, which explain its candidates."""

    item_ids: list[ItemIdList]
    """One list for each interest, the most attended item first."""
    weights: NDArray[np.float32]
    """Interests x items: the attention to each item; over the whole history it sums to 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Candidates for one user, best first, in parallel arrays."""

    item_ids: ItemIdList
    """Item ids, as the catalogue has them: strings or integers."""
    scores: NDArray[np.float32]
    """For each candidate, the inner product of its vector and the interest that found it."""
    interest_index: NDArray[np.int64]
    """For each candidate, the interest that found it: an index into `interests.vectors` and
    `reasons.item_ids`."""
    version: str
    """The bundle version that gave the whole answer."""
    is_canary: bool
    """Whether that is the canary (`re4 canary`), and not the live version."""
    num_unknown_history_ids: int
    """The number of history ids that this version does not know."""
    is_popularity_fallback: bool
    """Whether these are the most popular items, because no item of the history is known."""
    is_history_missing: bool
    """Whether the stored events of `user_id` could not be read, and the given history alone counted."""
    is_new: NDArray[np.bool_] | None
    """For each candidate, whether it is a new item; None unless `num_new_items` was set."""
    interests: Interests | None
    """The interests, if `return_interests` was set."""
    reasons: Reasons | None
    """The reasons of each interest, if `num_reasons` was set."""
    stage_times: dict[str, int]
    """Time of each stage in microseconds, and the number of users that shared the batch."""


@dataclass(frozen=True, kw_only=True)
class RecordedEvent:
    """An event of a user, as the server's store holds it."""

    item_id: str | int
    """The item's id, as it was recorded."""
    time_ms: int
    """The time of the event, in milliseconds since 1970."""


def retrieve_request(
    history: Sequence[str] | Sequence[int],
    num_candidates: int,
    exclude: Sequence[str] | Sequence[int],
    options: RetrieveOptions,
    user_id: str = "",
) -> retrieval_pb2.RetrieveRequest:
    """Return the request of Retrieve.

    Raises:
        RequestError: a value that no request can carry.
    """
    fields: dict[str, Any] = dict(options)
    policy = _policy(options.get("merge_policy"))
    filters = fields.pop("filters", ())
    fields.pop("merge_policy", None)
    return request_of(
        lambda: retrieval_pb2.RetrieveRequest(
            history=ids_message(history, "history"),
            num_candidates=num_candidates,
            exclude=ids_message(exclude, "exclude"),
            user_id=user_id,
            merge_policy=policy,
            filters=filter_messages(filters),
            **fields,
        )
    )


def retrieve_requests(
    histories: Sequence[Sequence[str] | Sequence[int]],
    num_candidates: int,
    exclude: Sequence[Sequence[str] | Sequence[int]] | None,
    options: RetrieveOptions,
    user_ids: Sequence[str] | None = None,
) -> list[retrieval_pb2.RetrieveRequest]:
    """Return one request of Retrieve for each user.

    Raises:
        RequestError: a value that no request can carry, or `exclude` or `user_ids` has another length than
            `histories`.
    """
    exclusions = exclude if exclude is not None else [()] * len(histories)
    users = user_ids if user_ids is not None else [""] * len(histories)
    for name, entries in (("exclude", exclusions), ("user_ids", users)):
        if len(entries) != len(histories):
            raise RequestError(
                f"{name} has {len(entries)} entries for {len(histories)} histories; give one for each"
            )
    return [
        retrieve_request(history, num_candidates, excluded, options, user_id)
        for history, excluded, user_id in zip(histories, exclusions, users, strict=True)
    ]


def encode_request(history: Sequence[str] | Sequence[int]) -> retrieval_pb2.EncodeRequest:
    """Return the request of Encode.

    Raises:
        RequestError: ids that are neither all strings nor all integers.
    """
    return request_of(lambda: retrieval_pb2.EncodeRequest(history=ids_message(history, "history")))


def record_events_request(
    user_ids: Sequence[str],
    item_ids: Sequence[str] | Sequence[int],
    times_ms: Sequence[int] | None,
    event_ids: Sequence[str] | None,
) -> retrieval_pb2.RecordEventsRequest:
    """Return the request of RecordEvents.

    Raises:
        RequestError: a value that no request can carry.
    """
    return request_of(
        lambda: retrieval_pb2.RecordEventsRequest(
            user_ids=user_ids,
            items=ids_message(item_ids, "item_ids"),
            times_ms=times_ms or (),
            event_ids=event_ids or (),
        )
    )


def get_history_request(user_id: str, num_events: int) -> retrieval_pb2.GetHistoryRequest:
    """Return the request of GetHistory.

    Raises:
        RequestError: a value that no request can carry.
    """
    return request_of(lambda: retrieval_pb2.GetHistoryRequest(user_id=user_id, num_events=num_events))


def forget_user_request(user_id: str) -> retrieval_pb2.ForgetUserRequest:
    """Return the request of ForgetUser.

    Raises:
        RequestError: a value that no request can carry.
    """
    return request_of(lambda: retrieval_pb2.ForgetUserRequest(user_id=user_id))


def to_history(reply: retrieval_pb2.GetHistoryReply) -> list[RecordedEvent]:
    """Convert a reply of GetHistory."""
    item_ids: Sequence[str | int] = to_ids(reply.items)
    return [
        RecordedEvent(item_id=item_id, time_ms=time_ms)
        for item_id, time_ms in zip(item_ids, reply.times_ms, strict=True)
    ]


def to_candidates(reply: retrieval_pb2.RetrieveReply) -> Candidates:
    """Convert a reply of Retrieve."""
    has_interests, num_unknown = reply.HasField("interests"), reply.num_unknown_history_ids
    return Candidates(
        item_ids=to_ids(reply.items),
        scores=np.array(reply.scores, np.float32),
        interest_index=np.array(reply.interest_numbers, np.int64),
        version=reply.version,
        is_canary=reply.is_canary,
        num_unknown_history_ids=num_unknown,
        is_popularity_fallback=reply.is_popularity_fallback,
        is_history_missing=reply.is_history_missing,
        is_new=np.array(reply.is_new, np.bool_) if reply.is_new else None,
        interests=to_interests(reply.interests, reply.version, num_unknown) if has_interests else None,
        reasons=_reasons(reply.reasons),
        stage_times={
            field.name: getattr(reply.stage_times, field.name)
            for field in reply.stage_times.DESCRIPTOR.fields
        },
    )


def to_batch(reply: retrieval_pb2.BatchRetrieveReply) -> list[Candidates | ServerError]:
    """Convert a reply of BatchRetrieve: one entry for each user."""
    item_ids = to_ids(reply.items)
    scores, interest_numbers = np.array(reply.scores, np.float32), np.array(reply.interest_numbers, np.int64)
    errors = {error.user: error for error in reply.errors}
    without_history = set(reply.users_without_history)
    found: list[Candidates | ServerError] = []
    end = 0
    for user, num_candidates in enumerate(reply.num_candidates):
        start, end = end, end + num_candidates
        if user in errors:
            found.append(_user_error(errors[user]))
            continue
        num_unknown = reply.num_unknown_history_ids[user]
        interests = reply.interests[user] if reply.interests else None
        found.append(
            Candidates(
                item_ids=item_ids[start:end],
                scores=scores[start:end],
                interest_index=interest_numbers[start:end],
                version=reply.version,
                is_canary=reply.is_canary,
                num_unknown_history_ids=num_unknown,
                is_popularity_fallback=reply.is_popularity_fallback[user],
                is_history_missing=user in without_history,
                is_new=np.array(reply.is_new[start:end], np.bool_) if reply.is_new else None,
                interests=to_interests(interests, reply.version, num_unknown)
                if interests is not None and interests.num_interests
                else None,
                reasons=_reasons(reply.reasons[user]) if reply.reasons else None,
                stage_times={},
            )
        )
    return found


def to_interests(found: retrieval_pb2.Interests, version: str, num_unknown_history_ids: int) -> Interests:
    """Convert an Interests message."""
    return Interests(
        vectors=np.array(found.vectors, np.float32).reshape(found.num_interests, found.embedding_dim),
        attention=np.array(found.attention, np.float32).reshape(found.num_interests, -1),
        attended_item_ids=to_ids(found.attended_items),
        version=version,
        num_unknown_history_ids=num_unknown_history_ids,
    )


def to_facts(reply: retrieval_pb2.InfoReply) -> dict[str, Any]:
    """Convert a reply of Info; `settings` and `attributes` become mappings by name."""
    facts = {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields}
    facts["attributes"] = {
        each.name: {
            "num_values": each.num_values,
            "is_multi_valued": each.is_multi_valued,
            "order": each.order,
        }
        for each in reply.attributes
    }
    # A 32-bit float has seven digits; its 64-bit form would show more.
    facts |= {name: float(f"{value:.7g}") for name, value in facts.items() if isinstance(value, float)}
    facts["thread_pools"] = dict(reply.thread_pools)
    facts["settings"] = {each.name: {"value": each.value, "source": each.source} for each in reply.settings}
    return facts


def _reasons(found: retrieval_pb2.Reasons) -> Reasons | None:
    each, ids = found.num_items, to_ids(found.items)
    if not each:
        return None
    return Reasons(
        item_ids=[ids[start : start + each] for start in range(0, len(ids), each)],
        weights=np.array(found.weights, np.float32).reshape(-1, each),
    )


def _user_error(error: retrieval_pb2.UserError) -> ServerError:
    code = STATUS_NAMES.get(error.code, error.code)
    return ServerError(f"{code} for user {error.user}: {error.message}")


def request_of(build: Callable[[], _MessageT]) -> _MessageT:
    """Return a request; raise RequestError for a value that it cannot carry."""
    try:
        return build()
    except (ValueError, TypeError) as error:  # from protobuf: out of range, a lone surrogate, not a number
        raise RequestError(f"the request cannot be sent: {error}") from None


def _policy(name: str | None) -> Any:
    if name is None:
        return retrieval_pb2.MERGE_POLICY_UNSPECIFIED
    if name not in policy_names():
        raise RequestError(f"merge_policy is {name!r}; there is {', '.join(policy_names())}")
    return retrieval_pb2.MergePolicy.Value(enum_name(name))


def ids_message(ids: Sequence[str] | Sequence[int], field: str) -> retrieval_pb2.ItemIds:
    """Return ids as a message; raise RequestError where they are neither all strings nor all integers."""
    if isinstance(ids, str | bytes):
        raise RequestError(f"{field} is one text, {ids!r:.60}; give a list of ids")
    values: list[Any] = [id_.item() if isinstance(id_, np.generic) else id_ for id_ in ids]
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        return retrieval_pb2.ItemIds(strings=values)
    if kinds == {int}:
        return retrieval_pb2.ItemIds(ints=values)
    raise RequestError(
        f"{field} holds {', '.join(sorted(kind.__name__ for kind in kinds))}; ids are all str or all int, "
        "as the catalogue has them"
    )


def filter_messages(filters: Sequence[AttributeFilter]) -> list[retrieval_pb2.AttributeFilter]:
    """Return filters as messages."""
    return [_filter_message(each) for each in filters]


def _filter_message(condition: AttributeFilter) -> retrieval_pb2.AttributeFilter:
    bounds = {}
    for name in ("above", "at_least", "below", "at_most"):
        bound = getattr(condition, name)
        if bound is not None and (text := value_text(bound)) is not None:
            bounds[name] = text
        elif bound is not None:
            raise RequestError(f"{name} of {condition.attribute!r} is {bound!r}; give a number or a date")
    return retrieval_pb2.AttributeFilter(
        attribute=condition.attribute,
        values=condition.values,
        drop=condition.drop,
        range=retrieval_pb2.AttributeRange(**bounds) if bounds else None,
    )


def to_ids(ids: retrieval_pb2.ItemIds) -> ItemIdList:
    """Return the ids of a message."""
    return list(ids.strings) or list(ids.ints)
