"""The manifest of a version, as strict models.

Reading refuses unknown keys, wrong types, names that are paths and numbers out of range. `verify.py` compares
the manifest with the files beside it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from re4.bundle.layout import (
    FILE_NAME_PATTERN,
    INDEX,
    MANIFEST,
    VECTORS,
    VERSION_PATTERN,
    IdKind,
    required_files,
)
from re4.common.errors import BundleDamagedError, BundleError

SCHEMA_VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 1 << 20
"""A larger manifest is refused unread: a real one has a few kilobytes."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
ShortText = Annotated[str, Field(min_length=1, max_length=200)]


def _finite(facts: dict[str, JsonValue]) -> dict[str, JsonValue]:
    json.dumps(facts, allow_nan=False)  # pydantic lets NaN and Infinity in JSON text through here
    return facts


Facts = Annotated[dict[str, JsonValue], AfterValidator(_finite)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """One file of the version."""

    name: Annotated[str, Field(pattern=FILE_NAME_PATTERN, max_length=100)]
    num_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class ModelInfo(_Strict):
    """The model whose encoder this version holds."""

    name: ShortText
    num_interests: Annotated[int, Field(ge=1)]
    embedding_dim: Annotated[int, Field(ge=1)]
    max_history_length: Annotated[int, Field(ge=1)]
    space: Sha256
    """Fingerprint of the item vectors with which the encoder was trained."""


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
SearchParameters = dict[str, int | float]


class FrontierPoint(_Strict):
    """A setting of the index that no other measured one beats in both recall and time."""

    search_parameters: SearchParameters
    recall: Share
    """On the queries of the tuning."""
    request_us: Positive
    """CPU time of the search for one request, in microseconds, on one thread."""
    bytes_per_item: Positive
    """Size of the index file divided by the number of items."""


class CollectionInfo(_Strict):
    """The collection of an index in Milvus. Credentials are never in a manifest."""

    address: ShortText
    """milvus://HOST:PORT, and optionally /DATABASE."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$", max_length=255)]
    index_type: ShortText
    """Milvus's name of it, such as IVF_SQ8."""
    num_lists: Annotated[int, Field(ge=1)] = 1
    """Lists of an IVF index, in each segment."""
    fields: tuple[ShortText, ...] = ()
    """Fields of attributes, by which Milvus filters; see `milvus/fields.py`."""


class IndexInfo(_Strict):
    """The index and its search parameters."""

    kind: ShortText
    factory: ShortText | None = None
    """FAISS factory string, for kinds that are built from one."""
    reason: ShortText | None = None
    """Why this kind was chosen, where the choice was automatic."""
    search_parameters: SearchParameters = {}
    recall: Share | None = None
    """Recall of the merged candidates at `num_candidates` with these parameters, on real queries that were
    not used to choose them; None where it was not measured."""
    recall_target: Share | None = None
    num_candidates: Annotated[int, Field(ge=1)] | None = None
    num_queries: Annotated[int, Field(ge=1)] | None = None
    """Number of queries in the mean `recall`."""
    frontier: tuple[FrontierPoint, ...] = ()
    """The other settings on the frontier, fastest first."""
    collection: CollectionInfo | None = None
    """Where the index is, if it is in Milvus; None for an index in the version's file."""

    @model_serializer(mode="wrap")
    def _without_no_collection(self, fields_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the collection out where there is none: older code reads the manifest too."""
        fields: dict[str, Any] = fields_of(self)
        if self.collection is None:
            fields.pop("collection", None)  # not there where the caller chose other fields
        return fields


MAX_NUM_ATTRIBUTES: Final = 64


class AttributeInfo(_Strict):
    """One attribute of the catalogue's items."""

    name: ShortText
    num_values: Annotated[int, Field(ge=1)]
    is_multi_valued: bool


class ItemsInfo(_Strict):
    """The catalogue."""

    num_items: Annotated[int, Field(ge=1)]
    id_kind: IdKind
    space: Sha256
    """Fingerprint of the item vectors whose space these vectors live in: equals the encoder's."""
    attributes: Annotated[tuple[AttributeInfo, ...], Field(max_length=MAX_NUM_ATTRIBUTES)] = ()
    """What the items can be filtered by; the place in this list is part of the files' names."""

    @model_validator(mode="after")
    def _attribute_names_are_unique(self) -> "ItemsInfo":
        names = [attribute.name for attribute in self.attributes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"attributes: {twice} listed twice")
        return self

    def required_files(self, index: IndexInfo) -> frozenset[str]:
        """Return the names of the files that a version must contain beside its manifest."""
        files = required_files(self.id_kind, [attribute.is_multi_valued for attribute in self.attributes])
        return files if index.collection is None else files - {INDEX}


class Manifest(_Strict):
    """The facts about a version."""

    schema_version: int
    version: Annotated[str, Field(pattern=VERSION_PATTERN, max_length=25)]
    created_at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$", max_length=27)]
    """Time of publication, ISO 8601, UTC. Later than that of every version published before."""
    files: tuple[FileEntry, ...]
    model: ModelInfo
    index: IndexInfo
    items: ItemsInfo
    evaluation: Facts
    """Metrics of the run by split; `interests`: how distinct the interests of real histories are."""
    lineage: Facts
    """Origin of the version: run, configuration, versions of code and libraries."""
    live_sequence: Annotated[int, Field(ge=0)] = 0
    """Changes of live items up to this sequence number are part of this version; see `live_items/`."""
    checksum: Sha256 | None = None
    """SHA-256 of all other fields, independent of layout; None in versions older than this field."""

    def needed_files(self, *, maps_vectors: bool = True) -> tuple[FileEntry, ...]:
        """Return the files that a server opens.

        Args:
            maps_vectors: Whether it maps the item vectors also where the index in Milvus has them.
        """
        if maps_vectors or self.index.collection is None:
            return self.files
        return tuple(entry for entry in self.files if entry.name != VECTORS)

    @property
    def effective_interests(self) -> float:
        """The number of distinct interests of a user by `evaluation`; 0 where it was not measured."""
        figures = self.evaluation.get("interests")
        found = figures.get("effective_interests") if isinstance(figures, dict) else None
        return float(found) if isinstance(found, int | float) else 0.0

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Manifest":
        names = [entry.name for entry in self.files]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or MANIFEST in names:
            raise ValueError(f"files: {twice or MANIFEST} listed twice, or the manifest lists itself")
        return self


class _SchemaVersion(BaseModel):
    """The schema version alone: it decides whether this code can parse the rest."""

    model_config = ConfigDict(extra="ignore", strict=True)
    schema_version: int


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Parse a manifest strictly.

    Args:
        data: The file's content.
        where: Name of the file in error messages.

    Raises:
        BundleDamagedError: not JSON, too large, an unknown key, a wrong type or a value out of range.
        BundleError: a schema version that this code does not read.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleDamagedError(f"{where}: larger than {MAX_MANIFEST_BYTES} bytes: not a manifest")
    try:
        found = _SchemaVersion.model_validate_json(data).schema_version
        if found != SCHEMA_VERSION:
            raise BundleError(
                f"{where}: schema_version is {found}, this code reads {SCHEMA_VERSION}. "
                "Export the version again with this code, or run the code that wrote it"
            )
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleDamagedError(f"{where}: {first_problem(error)}") from None
    if manifest.checksum not in (None, checksum_of(json.loads(data))):
        raise BundleDamagedError(
            f"{where}: something in it was changed after it was written: its checksum does not fit. "
            "Publish the version again"
        )
    return manifest


def dump_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON."""
    text = json.dumps(_written(manifest), indent=2, ensure_ascii=False, allow_nan=False)
    data = (text + "\n").encode()
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"the manifest would be {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are allowed: "
            "put less into evaluation and lineage"
        )
    return data


def build_manifest(**fields: Any) -> Manifest:
    """Make a manifest of this code's schema version.

    Raises:
        BundleError: a field has a value that readers refuse.
    """
    try:
        manifest = Manifest(schema_version=SCHEMA_VERSION, **fields)
    except ValidationError as error:
        raise BundleError(f"the manifest cannot be written: {first_problem(error)}") from None
    return manifest.model_copy(update={"checksum": checksum_of(_written(manifest))})


def _written(manifest: Manifest) -> dict[str, Any]:
    """Return the fields as they are written: without live items, older code reads them too."""
    fields = manifest.model_dump(mode="json")
    if not manifest.live_sequence:
        del fields["live_sequence"]
    return fields


def checksum_of(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all fields but the checksum, independent of their layout.

    It covers the written fields, not those of `Manifest`: a field that later code adds with a default changes
    nothing.
    """
    rest = {key: value for key, value in facts.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def first_problem(error: ValidationError) -> str:
    """Describe the first problem: field, reason, and the value where it is short."""
    problem = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or "the whole file"
    seen = repr(problem.get("input"))
    return f"{field}: {problem['msg']}" + (f" (found {seen})" if len(seen) <= 80 else "")
