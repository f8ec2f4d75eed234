"""The validation of requests: every limit, from messages to checked requests.

Validation finds every error of a request, before any computation. Messages name the field, the
value and the allowed values. Ids are checked but not looked up.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from re4.bundle.attributes.reader import Attribute
from re4.bundle.ids.string_keys import MAX_ID_BYTES
from re4.bundle.layout import IS_COLD
from re4.common.attribute_values import position
from re4.common.errors import RequestError
from re4.protos.v1 import retrieval_pb2
from re4.serving.histories.store import MAX_EVENT_ID_BYTES, MAX_USER_ID_BYTES
from re4.serving.protocol.policy_names import enum_name
from re4.serving.retrieval.filtered_search import SearchOptions
from re4.serving.retrieval.filters import Condition
from re4.serving.retrieval.merging import MAX_SCORE, POLICIES, MergePolicy
from re4.serving.retrieval.merging.category_diversity import category_diversity
from re4.serving.settings import Limits, ServerSettings
from re4.serving.versions.snapshot import Snapshot

Ids: TypeAlias = Sequence[str] | Sequence[int]
"""Of the catalogue's kind."""

POLICY_OF: Final[Mapping[int, MergePolicy]] = MappingProxyType(
    {retrieval_pb2.MergePolicy.Value(enum_name(name)): policy for name, policy in POLICIES.items()}
)
"""The merge policies without settings of their own, by the request's value."""

_DIVERSITY: Final = retrieval_pb2.MERGE_POLICY_CATEGORY_DIVERSITY
_FIELDS: Final = {"string": "strings", "int": "ints"}
_KINDS: Final = {"string": "strings", "int": "integers"}
_MAX_FUTURE_MS: Final = 2 * 86_400_000
"""Clocks of machines may be a day apart, and time zones another one."""
_MAX_CHARACTERS: Final = MAX_ID_BYTES // 4
"""A character is at most four bytes of UTF-8, so a shorter id is never too long."""


class CheckedRequest(NamedTuple):
    """A valid request, with the version that answers it."""

    snapshot: Snapshot
    history_ids: Ids
    """Oldest first."""
    num_candidates: int
    """0 for the interests alone."""
    excluded_ids: Ids = ()
    exclude_history: bool = False
    options: SearchOptions | None = None
    """None for a search of the whole catalogue at the tuned setting."""
    merge_policy: MergePolicy = MAX_SCORE
    return_interests: bool = False
    num_reasons: int = 0
    """How many history items to name for each interest."""
    user_id: str = ""
    """Whose stored events begin the history; empty for nobody's."""
    is_history_missing: bool = False
    """Whether the stored events could not be read, and are left out."""
    num_new_items: int = 0
    """The exploration quota; `options` then leave new items out. 0 for none."""
    new_item_options: SearchOptions | None = None
    """The options of a search for new items; None where there are none."""
    max_new_items: int | None = None
    """Most items without training in the list, by the server's setting; None for no bound."""

    @property
    def search_depth(self) -> int:
        """How many results each interest must find, at most; 0 for none."""
        num_excluded = len(self.excluded_ids) + (len(self.history_ids) if self.exclude_history else 0)
        return self.merge_policy.search_depth(self.num_candidates, num_excluded)


def check_retrieve(
    request: retrieval_pb2.RetrieveRequest, snapshot: Snapshot, settings: ServerSettings
) -> CheckedRequest:
    """Check a Retrieve request.

    Args:
        request: As it came.
        snapshot: The version that answers it.
        settings: For the limits and the default merge policy.

    Raises:
        RequestError: a value out of range, or ids that cannot be this catalogue's.
    """
    limits = settings.limits
    if not 1 <= request.num_candidates <= limits.max_num_candidates:
        raise RequestError(
            f"num_candidates is {request.num_candidates}; it must be from 1 to {limits.max_num_candidates}"
        )
    if request.num_reasons > limits.max_num_reasons:
        raise RequestError(
            f"num_reasons is {request.num_reasons}; it must be from 0 to {limits.max_num_reasons}"
        )
    if request.num_new_items > request.num_candidates:
        raise RequestError(
            f"num_new_items is {request.num_new_items}; it must be from 0 to num_candidates, "
            f"{request.num_candidates}"
        )
    merge_policy = _merge_policy(request, snapshot, settings.merge_policy)
    options, new_item_options = _search_options(request, snapshot, limits), None
    if request.num_new_items and IS_COLD in snapshot.attributes:
        codes = snapshot.attributes[IS_COLD].value_codes(["true"])
        known = tuple(codes[codes >= 0].tolist())
        if known:
            new_item_options = with_condition(options, Condition(IS_COLD, known, False))
            options = with_condition(options, Condition(IS_COLD, known, True))
    return CheckedRequest(
        snapshot=snapshot,
        history_ids=check_ids(request.history, "history", limits.max_num_history_ids, snapshot),
        num_candidates=request.num_candidates,
        excluded_ids=check_ids(request.exclude, "exclude", limits.max_num_excluded_ids, snapshot),
        exclude_history=request.exclude_history,
        options=options,
        merge_policy=merge_policy,
        return_interests=request.return_interests,
        num_reasons=request.num_reasons,
        user_id=_user_id(request.user_id, "user_id") if request.user_id else "",
        num_new_items=request.num_new_items,
        new_item_options=new_item_options,
        max_new_items=_max_new_items(request, snapshot, settings.max_new_share),
    )


def check_user(
    request: retrieval_pb2.RetrieveRequest, snapshot: Snapshot, settings: ServerSettings
) -> CheckedRequest | RequestError:
    """Check the request of one of many users, and return its error if it has one."""
    try:
        return check_retrieve(request, snapshot, settings)
    except RequestError as error:
        # Its frames refer to the list that gets it: a cycle, which would keep the version.
        return error.with_traceback(None)


def check_encode(
    request: retrieval_pb2.EncodeRequest, snapshot: Snapshot, settings: ServerSettings
) -> CheckedRequest:
    """Check an Encode request.

    Raises:
        RequestError: ids that cannot be this catalogue's, or too many.
    """
    ids = check_ids(request.history, "history", settings.limits.max_num_history_ids, snapshot)
    return CheckedRequest(snapshot=snapshot, history_ids=ids, num_candidates=0, return_interests=True)


def check_record_events(
    request: retrieval_pb2.RecordEventsRequest, snapshot: Snapshot, max_num_events: int, now_ms: int
) -> None:
    """Check a RecordEvents request.

    Raises:
        RequestError: no events, too many, columns of different lengths, an id that is empty, too long or
            of the wrong kind, a time out of range, or an event id without a time. No message holds a user id.
    """
    num_events = len(request.user_ids)
    if not 1 <= num_events <= max_num_events:
        raise RequestError(f"user_ids has {num_events} ids; it may have from 1 to {max_num_events}")
    items = check_ids(request.items, "items", max_num_events, snapshot)
    times_ms, event_ids = request.times_ms, request.event_ids
    for name, column, may_be_empty in (
        ("items", items, False),
        ("times_ms", times_ms, True),
        ("event_ids", event_ids, True),
    ):
        if len(column) != num_events and (column or not may_be_empty):
            raise RequestError(
                f"{name} has {len(column)} entries for the {num_events} of user_ids; each event needs one"
            )
    _check_texts(request.user_ids, "user_ids", MAX_USER_ID_BYTES)
    latest_ms = now_ms + _MAX_FUTURE_MS
    if times_ms and not 0 <= min(times_ms) <= max(times_ms) <= latest_ms:
        place = next(place for place, time_ms in enumerate(times_ms) if not 0 <= time_ms <= latest_ms)
        raise RequestError(
            f"times_ms[{place}] is {times_ms[place]}; a time is in milliseconds since 1970, from 1 to two "
            f"days from now, {latest_ms}, or 0 for the time of receipt"
        )
    if event_ids:
        _check_texts([text for text in event_ids if text], "event_ids", MAX_EVENT_ID_BYTES)
        if not times_ms or any(
            text and not time_ms for text, time_ms in zip(event_ids, times_ms, strict=True)
        ):
            raise RequestError(
                "event_ids has an id for an event without a time in times_ms; give both, so that a repeated "
                "call is the same in the training data, too"
            )


def check_user_id(user_id: str) -> str:
    """Check the user id of a GetHistory or ForgetUser request, and return it.

    Raises:
        RequestError: it is empty or too long. The message does not hold it.
    """
    return _user_id(user_id, "user_id")


def _user_id(user_id: str, field: str) -> str:
    _check_texts([user_id], field, MAX_USER_ID_BYTES)
    return user_id


def _check_texts(texts: Sequence[str], field: str, max_bytes: int) -> None:
    if not texts or (min(map(len, texts)) > 0 and max(map(len, texts)) <= max_bytes // 4):
        return
    for place, text in enumerate(texts):
        num_bytes = len(text.encode())
        if not 1 <= num_bytes <= max_bytes:
            where = field if field == "user_id" else f"{field}[{place}]"
            raise RequestError(f"{where} is {num_bytes} bytes of UTF-8; an id has from 1 to {max_bytes}")


def _search_options(
    request: retrieval_pb2.RetrieveRequest, snapshot: Snapshot, limits: Limits
) -> SearchOptions | None:
    """Return the request's search options; None for the default ones.

    Raises:
        RequestError: an unknown attribute, too many filters or values, or an effort out of range.
    """
    effort = request.search_effort
    if not effort and not request.filters:
        return None
    if effort and not limits.min_search_effort <= effort <= limits.max_search_effort:
        raise RequestError(
            f"search_effort is {effort:g}; it must be from {limits.min_search_effort:g} to "
            f"{limits.max_search_effort:g}, or 0 for the default"
        )
    conditions = check_filters(request.filters, snapshot, limits)
    # An exact index has no search parameters: whatever the effort, its searches share a call.
    if not effort or not snapshot.manifest.index.search_parameters:
        effort = 1.0
    if not conditions and effort == 1:
        return None
    return _ordered_options(conditions, effort)


def check_filters(
    filters: Sequence[retrieval_pb2.AttributeFilter], snapshot: Snapshot, limits: Limits
) -> set[Condition]:
    """Check filters, and return their conditions.

    Raises:
        RequestError: an unknown attribute, or too many filters or values.
    """
    if len(filters) > limits.max_num_filters:
        raise RequestError(
            f"filters has {len(filters)} filters; it may have from 0 to {limits.max_num_filters}"
        )
    num_values = sum(len(each.values) for each in filters)
    if num_values > limits.max_num_filter_values:
        raise RequestError(
            f"filters has {num_values} values; it may have from 0 to {limits.max_num_filter_values}"
        )
    return {_condition(each, f"filters[{place}]", snapshot) for place, each in enumerate(filters)}


def check_attribute(name: str, field: str, snapshot: Snapshot) -> Attribute:
    """Return the attribute of a name; raise RequestError where the version has none."""
    if name not in snapshot.attributes:
        names = snapshot.attributes.names
        known = f"has {', '.join(names)}" if names else "has no attributes"
        raise RequestError(f"{field} is {name[:200]!r}; version {snapshot.manifest.version} {known}")
    return snapshot.attributes[name]


def _ordered_options(conditions: Iterable[Condition], effort: float) -> SearchOptions:
    """Return options that are equal for equal conditions in any order."""
    in_order = sorted(
        conditions, key=lambda each: (each.attribute, each.is_drop, each.codes, each.range or ())
    )
    return SearchOptions(tuple(in_order), effort)


def _max_new_items(
    request: retrieval_pb2.RetrieveRequest, snapshot: Snapshot, max_new_share: float
) -> int | None:
    """Return the bound on new items in the list; None without live items, or with a bound of the request."""
    is_bounded = (
        snapshot.live is not None
        and max_new_share
        and not request.num_new_items
        and IS_COLD in snapshot.attributes
        and not any(each.attribute == IS_COLD for each in request.filters)
    )
    return math.ceil(max_new_share * request.num_candidates) if is_bounded else None


def with_condition(options: SearchOptions | None, condition: Condition) -> SearchOptions:
    """Return the search options with one more condition."""
    options = options or SearchOptions()
    return _ordered_options({*options.conditions, condition}, options.effort)


def _merge_policy(request: retrieval_pb2.RetrieveRequest, snapshot: Snapshot, default: str) -> MergePolicy:
    """Return the request's merge policy, or the server's default one.

    Raises:
        RequestError: there is no such policy, or a setting of it is missing or wrong.
    """
    policy = request.merge_policy
    if policy == _DIVERSITY:
        if not 0 <= request.diversity < math.inf:
            raise RequestError(f"diversity is {request.diversity:g}; it must be 0 or more, and finite")
        category = check_attribute(request.diversity_attribute, "diversity_attribute", snapshot)
        return category_diversity(category, request.diversity)
    if request.diversity or request.diversity_attribute:
        raise RequestError(
            f"diversity is {request.diversity:g}, diversity_attribute is {request.diversity_attribute!r}, "
            f"and merge_policy is {policy}; those two go with {_DIVERSITY} (category-diversity) alone"
        )
    if not policy:
        return POLICIES[default]
    if policy not in POLICY_OF:
        raise RequestError(
            f"merge_policy is {policy}; it must be from 0 to {max(*POLICY_OF, _DIVERSITY)}: "
            f"the server's choice, {', '.join(POLICIES)}, category-diversity"
        )
    return POLICY_OF[policy]


def _condition(message: retrieval_pb2.AttributeFilter, field: str, snapshot: Snapshot) -> Condition:
    attribute = check_attribute(message.attribute, f"{field}.attribute", snapshot)
    if message.HasField("range"):
        if message.values:
            raise RequestError(f"{field} has values and a range; give one of them")
        return Condition(attribute.name, (), message.drop, _range(message.range, f"{field}.range", attribute))
    if not message.values:
        raise RequestError(f"{field}.values is empty; give at least one value of {attribute.name!r}")
    codes = {int(code) for code in attribute.value_codes(message.values)} - {-1}
    return Condition(attribute.name, tuple(sorted(codes)), message.drop)


def _range(message: retrieval_pb2.AttributeRange, field: str, attribute: Attribute) -> tuple[float, float]:
    """Return the first and the last position of a range."""
    if attribute.order is None:
        raise RequestError(
            f"{field}: the values of {attribute.name!r} are not all numbers or all dates; give values in "
            "place of a range"
        )
    bounds = {bound.name: text for bound, text in message.ListFields()}
    if not bounds:
        raise RequestError(f"{field} is empty; give above, at_least, below or at_most")
    for either, other in (("above", "at_least"), ("below", "at_most")):
        if either in bounds and other in bounds:
            raise RequestError(f"{field} has {either} and {other}; give one of them")
    found = {}
    for bound, text in bounds.items():
        place = position(text)
        if place is None or place[0] != attribute.order:
            raise RequestError(
                f"{field}.{bound} is {text[:60]!r}; {attribute.name!r} has {attribute.order}s, such as "
                f"{attribute.value(0)}"
            )
        found[bound] = place[1]
    low = math.nextafter(found["above"], math.inf) if "above" in found else found.get("at_least", -math.inf)
    high = math.nextafter(found["below"], -math.inf) if "below" in found else found.get("at_most", math.inf)
    return low, high


def check_ids(ids: retrieval_pb2.ItemIds, field: str, max_num_ids: int, snapshot: Snapshot) -> Ids:
    """Return the ids of the field that fits the catalogue."""
    strings, ints = ids.strings, ids.ints
    num_ids = len(strings) + len(ints)
    if not num_ids:
        return ()
    kind = snapshot.item_ids.kind
    if ints if kind == "string" else strings:
        fits = f"this catalogue's ids are {_KINDS[kind]}: fill {field}.{_FIELDS[kind]}"
        if strings and ints:
            raise RequestError(
                f"{field} has {len(strings)} ids in strings and {len(ints)} in ints; only one may be filled, "
                f"and {fits}"
            )
        raise RequestError(f"{field} has {num_ids} ids in {'strings' if strings else 'ints'}; {fits}")
    if num_ids > max_num_ids:
        raise RequestError(f"{field} has {num_ids} ids; it may have from 0 to {max_num_ids}")
    return checked_strings(list(strings), field) if kind == "string" else list(ints)


def checked_strings(ids: list[str], field: str) -> list[str]:
    """Return ids of a request.

    Raises:
        RequestError: one is empty or too long.
    """
    if min(map(len, ids)) > 0 and max(map(len, ids)) <= _MAX_CHARACTERS:
        return ids
    for place, text in enumerate(ids):
        num_bytes = len(text.encode())
        if not 1 <= num_bytes <= MAX_ID_BYTES:
            raise RequestError(
                f"{field}.strings[{place}] is {num_bytes} bytes of UTF-8; an id has from 1 to {MAX_ID_BYTES}"
            )
    return ids
