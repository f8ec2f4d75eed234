from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MergePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MERGE_POLICY_UNSPECIFIED: _ClassVar[MergePolicy]
    MERGE_POLICY_MAX_SCORE: _ClassVar[MergePolicy]
    MERGE_POLICY_EQUAL_QUOTA: _ClassVar[MergePolicy]
    MERGE_POLICY_ATTENTION_QUOTA: _ClassVar[MergePolicy]
    MERGE_POLICY_ROUND_ROBIN: _ClassVar[MergePolicy]
    MERGE_POLICY_CATEGORY_DIVERSITY: _ClassVar[MergePolicy]
    MERGE_POLICY_SOFT_QUOTA: _ClassVar[MergePolicy]
MERGE_POLICY_UNSPECIFIED: MergePolicy
MERGE_POLICY_MAX_SCORE: MergePolicy
MERGE_POLICY_EQUAL_QUOTA: MergePolicy
MERGE_POLICY_ATTENTION_QUOTA: MergePolicy
MERGE_POLICY_ROUND_ROBIN: MergePolicy
MERGE_POLICY_CATEGORY_DIVERSITY: MergePolicy
MERGE_POLICY_SOFT_QUOTA: MergePolicy

class ItemIds(_message.Message):
    __slots__ = ("strings", "ints")
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    INTS_FIELD_NUMBER: _ClassVar[int]
    strings: _containers.RepeatedScalarFieldContainer[str]
    ints: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, strings: _Optional[_Iterable[str]] = ..., ints: _Optional[_Iterable[int]] = ...) -> None: ...

class AttributeRange(_message.Message):
    __slots__ = ("above", "at_least", "below", "at_most")
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    above: str
    at_least: str
    below: str
    at_most: str
    def __init__(self, above: _Optional[str] = ..., at_least: _Optional[str] = ..., below: _Optional[str] = ..., at_most: _Optional[str] = ...) -> None: ...

class AttributeFilter(_message.Message):
    __slots__ = ("attribute", "values", "drop", "range")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    values: _containers.RepeatedScalarFieldContainer[str]
    drop: bool
    range: AttributeRange
    def __init__(self, attribute: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ..., drop: _Optional[bool] = ..., range: _Optional[_Union[AttributeRange, _Mapping]] = ...) -> None: ...

class RetrieveRequest(_message.Message):
    __slots__ = ("history", "num_candidates", "exclude", "exclude_history", "return_interests", "merge_policy", "filters", "diversity", "diversity_attribute", "search_effort", "num_reasons", "user_id", "num_new_items")
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_HISTORY_FIELD_NUMBER: _ClassVar[int]
    RETURN_INTERESTS_FIELD_NUMBER: _ClassVar[int]
    MERGE_POLICY_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    SEARCH_EFFORT_FIELD_NUMBER: _ClassVar[int]
    NUM_REASONS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_NEW_ITEMS_FIELD_NUMBER: _ClassVar[int]
    history: ItemIds
    num_candidates: int
    exclude: ItemIds
    exclude_history: bool
    return_interests: bool
    merge_policy: MergePolicy
    filters: _containers.RepeatedCompositeFieldContainer[AttributeFilter]
    diversity: float
    diversity_attribute: str
    search_effort: float
    num_reasons: int
    user_id: str
    num_new_items: int
    def __init__(self, history: _Optional[_Union[ItemIds, _Mapping]] = ..., num_candidates: _Optional[int] = ..., exclude: _Optional[_Union[ItemIds, _Mapping]] = ..., exclude_history: _Optional[bool] = ..., return_interests: _Optional[bool] = ..., merge_policy: _Optional[_Union[MergePolicy, str]] = ..., filters: _Optional[_Iterable[_Union[AttributeFilter, _Mapping]]] = ..., diversity: _Optional[float] = ..., diversity_attribute: _Optional[str] = ..., search_effort: _Optional[float] = ..., num_reasons: _Optional[int] = ..., user_id: _Optional[str] = ..., num_new_items: _Optional[int] = ...) -> None: ...

class RetrieveReply(_message.Message):
    __slots__ = ("items", "scores", "interest_numbers", "version", "num_unknown_history_ids", "is_popularity_fallback", "interests", "stage_times", "reasons", "search_effort", "is_history_missing", "is_new", "is_canary")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    INTEREST_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_HISTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    IS_POPULARITY_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    INTERESTS_FIELD_NUMBER: _ClassVar[int]
    STAGE_TIMES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_EFFORT_FIELD_NUMBER: _ClassVar[int]
    IS_HISTORY_MISSING_FIELD_NUMBER: _ClassVar[int]
    IS_NEW_FIELD_NUMBER: _ClassVar[int]
    IS_CANARY_FIELD_NUMBER: _ClassVar[int]
    items: ItemIds
    scores: _containers.RepeatedScalarFieldContainer[float]
    interest_numbers: _containers.RepeatedScalarFieldContainer[int]
    version: str
    num_unknown_history_ids: int
    is_popularity_fallback: bool
    interests: Interests
    stage_times: StageTimes
    reasons: Reasons
    search_effort: float
    is_history_missing: bool
    is_new: _containers.RepeatedScalarFieldContainer[bool]
    is_canary: bool
    def __init__(self, items: _Optional[_Union[ItemIds, _Mapping]] = ..., scores: _Optional[_Iterable[float]] = ..., interest_numbers: _Optional[_Iterable[int]] = ..., version: _Optional[str] = ..., num_unknown_history_ids: _Optional[int] = ..., is_popularity_fallback: _Optional[bool] = ..., interests: _Optional[_Union[Interests, _Mapping]] = ..., stage_times: _Optional[_Union[StageTimes, _Mapping]] = ..., reasons: _Optional[_Union[Reasons, _Mapping]] = ..., search_effort: _Optional[float] = ..., is_history_missing: _Optional[bool] = ..., is_new: _Optional[_Iterable[bool]] = ..., is_canary: _Optional[bool] = ...) -> None: ...

class LiveItem(_message.Message):
    __slots__ = ("string_id", "int_id", "attributes", "vector")
    STRING_ID_FIELD_NUMBER: _ClassVar[int]
    INT_ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    string_id: str
    int_id: int
    attributes: _containers.RepeatedCompositeFieldContainer[AttributeValues]
    vector: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, string_id: _Optional[str] = ..., int_id: _Optional[int] = ..., attributes: _Optional[_Iterable[_Union[AttributeValues, _Mapping]]] = ..., vector: _Optional[_Iterable[float]] = ...) -> None: ...

class AttributeValues(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class UpsertItemsRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[LiveItem]
    def __init__(self, items: _Optional[_Iterable[_Union[LiveItem, _Mapping]]] = ...) -> None: ...

class RemoveItemsRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: ItemIds
    def __init__(self, items: _Optional[_Union[ItemIds, _Mapping]] = ...) -> None: ...

class EditItemsReply(_message.Message):
    __slots__ = ("sequence", "version", "num_unknown")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    version: str
    num_unknown: int
    def __init__(self, sequence: _Optional[int] = ..., version: _Optional[str] = ..., num_unknown: _Optional[int] = ...) -> None: ...

class Reasons(_message.Message):
    __slots__ = ("num_items", "items", "weights")
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    num_items: int
    items: ItemIds
    weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, num_items: _Optional[int] = ..., items: _Optional[_Union[ItemIds, _Mapping]] = ..., weights: _Optional[_Iterable[float]] = ...) -> None: ...

class BatchRetrieveRequest(_message.Message):
    __slots__ = ("users",)
    USERS_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedCompositeFieldContainer[RetrieveRequest]
    def __init__(self, users: _Optional[_Iterable[_Union[RetrieveRequest, _Mapping]]] = ...) -> None: ...

class BatchRetrieveReply(_message.Message):
    __slots__ = ("items", "scores", "interest_numbers", "num_candidates", "num_unknown_history_ids", "is_popularity_fallback", "interests", "errors", "version", "reasons", "users_without_history", "is_new", "is_canary")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    INTEREST_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_HISTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    IS_POPULARITY_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    INTERESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    USERS_WITHOUT_HISTORY_FIELD_NUMBER: _ClassVar[int]
    IS_NEW_FIELD_NUMBER: _ClassVar[int]
    IS_CANARY_FIELD_NUMBER: _ClassVar[int]
    items: ItemIds
    scores: _containers.RepeatedScalarFieldContainer[float]
    interest_numbers: _containers.RepeatedScalarFieldContainer[int]
    num_candidates: _containers.RepeatedScalarFieldContainer[int]
    num_unknown_history_ids: _containers.RepeatedScalarFieldContainer[int]
    is_popularity_fallback: _containers.RepeatedScalarFieldContainer[bool]
    interests: _containers.RepeatedCompositeFieldContainer[Interests]
    errors: _containers.RepeatedCompositeFieldContainer[UserError]
    version: str
    reasons: _containers.RepeatedCompositeFieldContainer[Reasons]
    users_without_history: _containers.RepeatedScalarFieldContainer[int]
    is_new: _containers.RepeatedScalarFieldContainer[bool]
    is_canary: bool
    def __init__(self, items: _Optional[_Union[ItemIds, _Mapping]] = ..., scores: _Optional[_Iterable[float]] = ..., interest_numbers: _Optional[_Iterable[int]] = ..., num_candidates: _Optional[_Iterable[int]] = ..., num_unknown_history_ids: _Optional[_Iterable[int]] = ..., is_popularity_fallback: _Optional[_Iterable[bool]] = ..., interests: _Optional[_Iterable[_Union[Interests, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[UserError, _Mapping]]] = ..., version: _Optional[str] = ..., reasons: _Optional[_Iterable[_Union[Reasons, _Mapping]]] = ..., users_without_history: _Optional[_Iterable[int]] = ..., is_new: _Optional[_Iterable[bool]] = ..., is_canary: _Optional[bool] = ...) -> None: ...

class UserError(_message.Message):
    __slots__ = ("user", "code", "message")
    USER_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    user: int
    code: int
    message: str
    def __init__(self, user: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("history",)
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    history: ItemIds
    def __init__(self, history: _Optional[_Union[ItemIds, _Mapping]] = ...) -> None: ...

class EncodeReply(_message.Message):
    __slots__ = ("interests", "version", "num_unknown_history_ids", "is_canary")
    INTERESTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_HISTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    IS_CANARY_FIELD_NUMBER: _ClassVar[int]
    interests: Interests
    version: str
    num_unknown_history_ids: int
    is_canary: bool
    def __init__(self, interests: _Optional[_Union[Interests, _Mapping]] = ..., version: _Optional[str] = ..., num_unknown_history_ids: _Optional[int] = ..., is_canary: _Optional[bool] = ...) -> None: ...

class Interests(_message.Message):
    __slots__ = ("num_interests", "embedding_dim", "vectors", "attention", "attended_items")
    NUM_INTERESTS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    ATTENDED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    num_interests: int
    embedding_dim: int
    vectors: _containers.RepeatedScalarFieldContainer[float]
    attention: _containers.RepeatedScalarFieldContainer[float]
    attended_items: ItemIds
    def __init__(self, num_interests: _Optional[int] = ..., embedding_dim: _Optional[int] = ..., vectors: _Optional[_Iterable[float]] = ..., attention: _Optional[_Iterable[float]] = ..., attended_items: _Optional[_Union[ItemIds, _Mapping]] = ...) -> None: ...

class StageTimes(_message.Message):
    __slots__ = ("queue_us", "gather_us", "encode_us", "search_us", "merge_us", "batch_size")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    GATHER_US_FIELD_NUMBER: _ClassVar[int]
    ENCODE_US_FIELD_NUMBER: _ClassVar[int]
    SEARCH_US_FIELD_NUMBER: _ClassVar[int]
    MERGE_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    gather_us: int
    encode_us: int
    search_us: int
    merge_us: int
    batch_size: int
    def __init__(self, queue_us: _Optional[int] = ..., gather_us: _Optional[int] = ..., encode_us: _Optional[int] = ..., search_us: _Optional[int] = ..., merge_us: _Optional[int] = ..., batch_size: _Optional[int] = ...) -> None: ...

class RecordEventsRequest(_message.Message):
    __slots__ = ("user_ids", "items", "times_ms", "event_ids")
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    EVENT_IDS_FIELD_NUMBER: _ClassVar[int]
    user_ids: _containers.RepeatedScalarFieldContainer[str]
    items: ItemIds
    times_ms: _containers.RepeatedScalarFieldContainer[int]
    event_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, user_ids: _Optional[_Iterable[str]] = ..., items: _Optional[_Union[ItemIds, _Mapping]] = ..., times_ms: _Optional[_Iterable[int]] = ..., event_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RecordEventsReply(_message.Message):
    __slots__ = ("num_recorded", "num_duplicates")
    NUM_RECORDED_FIELD_NUMBER: _ClassVar[int]
    NUM_DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    num_recorded: int
    num_duplicates: int
    def __init__(self, num_recorded: _Optional[int] = ..., num_duplicates: _Optional[int] = ...) -> None: ...

class GetHistoryRequest(_message.Message):
    __slots__ = ("user_id", "num_events")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_EVENTS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    num_events: int
    def __init__(self, user_id: _Optional[str] = ..., num_events: _Optional[int] = ...) -> None: ...

class GetHistoryReply(_message.Message):
    __slots__ = ("items", "times_ms")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    items: ItemIds
    times_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, items: _Optional[_Union[ItemIds, _Mapping]] = ..., times_ms: _Optional[_Iterable[int]] = ...) -> None: ...

class ForgetUserRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class ForgetUserReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetItemsRequest(_message.Message):
    __slots__ = ("items", "return_vectors")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    RETURN_VECTORS_FIELD_NUMBER: _ClassVar[int]
    items: ItemIds
    return_vectors: bool
    def __init__(self, items: _Optional[_Union[ItemIds, _Mapping]] = ..., return_vectors: _Optional[bool] = ...) -> None: ...

class GetItemsReply(_message.Message):
    __slots__ = ("items", "version")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    version: str
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., version: _Optional[str] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("is_known", "title", "attributes", "vector", "is_hidden", "is_live")
    IS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    IS_HIDDEN_FIELD_NUMBER: _ClassVar[int]
    IS_LIVE_FIELD_NUMBER: _ClassVar[int]
    is_known: bool
    title: str
    attributes: _containers.RepeatedCompositeFieldContainer[AttributeValues]
    vector: _containers.RepeatedScalarFieldContainer[float]
    is_hidden: bool
    is_live: bool
    def __init__(self, is_known: _Optional[bool] = ..., title: _Optional[str] = ..., attributes: _Optional[_Iterable[_Union[AttributeValues, _Mapping]]] = ..., vector: _Optional[_Iterable[float]] = ..., is_hidden: _Optional[bool] = ..., is_live: _Optional[bool] = ...) -> None: ...

class FindItemsRequest(_message.Message):
    __slots__ = ("text", "filters", "num_items")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    text: str
    filters: _containers.RepeatedCompositeFieldContainer[AttributeFilter]
    num_items: int
    def __init__(self, text: _Optional[str] = ..., filters: _Optional[_Iterable[_Union[AttributeFilter, _Mapping]]] = ..., num_items: _Optional[int] = ...) -> None: ...

class FindItemsReply(_message.Message):
    __slots__ = ("items", "version", "has_more")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    items: ItemIds
    version: str
    has_more: bool
    def __init__(self, items: _Optional[_Union[ItemIds, _Mapping]] = ..., version: _Optional[str] = ..., has_more: _Optional[bool] = ...) -> None: ...

class ListValuesRequest(_message.Message):
    __slots__ = ("attribute", "like", "num_values")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    LIKE_FIELD_NUMBER: _ClassVar[int]
    NUM_VALUES_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    like: str
    num_values: int
    def __init__(self, attribute: _Optional[str] = ..., like: _Optional[str] = ..., num_values: _Optional[int] = ...) -> None: ...

class ListValuesReply(_message.Message):
    __slots__ = ("values", "num_items", "version")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    num_items: _containers.RepeatedScalarFieldContainer[int]
    version: str
    def __init__(self, values: _Optional[_Iterable[str]] = ..., num_items: _Optional[_Iterable[int]] = ..., version: _Optional[str] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("version", "created_at", "model", "num_interests", "embedding_dim", "index", "num_items", "item_id_kind", "max_history_length", "max_num_candidates", "max_num_history_ids", "max_num_excluded_ids", "max_message_bytes", "failed_version", "failure", "server_version", "num_processes", "max_num_users", "settings", "attributes", "max_num_filters", "max_num_filter_values", "min_search_effort", "max_search_effort", "max_num_reasons", "num_hidden_items", "hidden_failure", "brown_out_effort", "is_browned_out", "thread_pools", "history_store", "history_failure", "max_num_events", "max_history_events", "num_live_items", "live_sequence", "live_failure", "max_num_edited_items", "index_recall", "has_titles", "effective_interests", "index_failure", "canary_version", "canary_share", "canary_is_shadow", "canary_failure", "online_recall", "num_recall_samples", "canary_index_recall", "canary_online_recall", "num_canary_recall_samples")
    class ThreadPoolsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_INTERESTS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_KIND_FIELD_NUMBER: _ClassVar[int]
    MAX_HISTORY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_HISTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_EXCLUDED_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FAILED_VERSION_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_PROCESSES_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_USERS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_FILTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_FILTER_VALUES_FIELD_NUMBER: _ClassVar[int]
    MIN_SEARCH_EFFORT_FIELD_NUMBER: _ClassVar[int]
    MAX_SEARCH_EFFORT_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_REASONS_FIELD_NUMBER: _ClassVar[int]
    NUM_HIDDEN_ITEMS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FAILURE_FIELD_NUMBER: _ClassVar[int]
    BROWN_OUT_EFFORT_FIELD_NUMBER: _ClassVar[int]
    IS_BROWNED_OUT_FIELD_NUMBER: _ClassVar[int]
    THREAD_POOLS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_STORE_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FAILURE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_EVENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_HISTORY_EVENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_LIVE_ITEMS_FIELD_NUMBER: _ClassVar[int]
    LIVE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LIVE_FAILURE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_EDITED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    INDEX_RECALL_FIELD_NUMBER: _ClassVar[int]
    HAS_TITLES_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_INTERESTS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FAILURE_FIELD_NUMBER: _ClassVar[int]
    CANARY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    CANARY_IS_SHADOW_FIELD_NUMBER: _ClassVar[int]
    CANARY_FAILURE_FIELD_NUMBER: _ClassVar[int]
    ONLINE_RECALL_FIELD_NUMBER: _ClassVar[int]
    NUM_RECALL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CANARY_INDEX_RECALL_FIELD_NUMBER: _ClassVar[int]
    CANARY_ONLINE_RECALL_FIELD_NUMBER: _ClassVar[int]
    NUM_CANARY_RECALL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    version: str
    created_at: str
    model: str
    num_interests: int
    embedding_dim: int
    index: str
    num_items: int
    item_id_kind: str
    max_history_length: int
    max_num_candidates: int
    max_num_history_ids: int
    max_num_excluded_ids: int
    max_message_bytes: int
    failed_version: str
    failure: str
    server_version: str
    num_processes: int
    max_num_users: int
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    max_num_filters: int
    max_num_filter_values: int
    min_search_effort: float
    max_search_effort: float
    max_num_reasons: int
    num_hidden_items: int
    hidden_failure: str
    brown_out_effort: float
    is_browned_out: bool
    thread_pools: _containers.ScalarMap[str, int]
    history_store: str
    history_failure: str
    max_num_events: int
    max_history_events: int
    num_live_items: int
    live_sequence: int
    live_failure: str
    max_num_edited_items: int
    index_recall: float
    has_titles: bool
    effective_interests: float
    index_failure: str
    canary_version: str
    canary_share: float
    canary_is_shadow: bool
    canary_failure: str
    online_recall: float
    num_recall_samples: int
    canary_index_recall: float
    canary_online_recall: float
    num_canary_recall_samples: int
    def __init__(self, version: _Optional[str] = ..., created_at: _Optional[str] = ..., model: _Optional[str] = ..., num_interests: _Optional[int] = ..., embedding_dim: _Optional[int] = ..., index: _Optional[str] = ..., num_items: _Optional[int] = ..., item_id_kind: _Optional[str] = ..., max_history_length: _Optional[int] = ..., max_num_candidates: _Optional[int] = ..., max_num_history_ids: _Optional[int] = ..., max_num_excluded_ids: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., failed_version: _Optional[str] = ..., failure: _Optional[str] = ..., server_version: _Optional[str] = ..., num_processes: _Optional[int] = ..., max_num_users: _Optional[int] = ..., settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., max_num_filters: _Optional[int] = ..., max_num_filter_values: _Optional[int] = ..., min_search_effort: _Optional[float] = ..., max_search_effort: _Optional[float] = ..., max_num_reasons: _Optional[int] = ..., num_hidden_items: _Optional[int] = ..., hidden_failure: _Optional[str] = ..., brown_out_effort: _Optional[float] = ..., is_browned_out: _Optional[bool] = ..., thread_pools: _Optional[_Mapping[str, int]] = ..., history_store: _Optional[str] = ..., history_failure: _Optional[str] = ..., max_num_events: _Optional[int] = ..., max_history_events: _Optional[int] = ..., num_live_items: _Optional[int] = ..., live_sequence: _Optional[int] = ..., live_failure: _Optional[str] = ..., max_num_edited_items: _Optional[int] = ..., index_recall: _Optional[float] = ..., has_titles: _Optional[bool] = ..., effective_interests: _Optional[float] = ..., index_failure: _Optional[str] = ..., canary_version: _Optional[str] = ..., canary_share: _Optional[float] = ..., canary_is_shadow: _Optional[bool] = ..., canary_failure: _Optional[str] = ..., online_recall: _Optional[float] = ..., num_recall_samples: _Optional[int] = ..., canary_index_recall: _Optional[float] = ..., canary_online_recall: _Optional[float] = ..., num_canary_recall_samples: _Optional[int] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("name", "num_values", "is_multi_valued", "order")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_VALUES_FIELD_NUMBER: _ClassVar[int]
    IS_MULTI_VALUED_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_values: int
    is_multi_valued: bool
    order: str
    def __init__(self, name: _Optional[str] = ..., num_values: _Optional[int] = ..., is_multi_valued: _Optional[bool] = ..., order: _Optional[str] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("name", "value", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    source: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...
