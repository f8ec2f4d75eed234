"""The list `LIVE`: the segments of live items, how much of each counts, and the last sequence number.

    bundles/LIVE     {"schema_version": 1, "sequence": 17, "compacted_sequence": 9,
                      "segments": [{"name": …, "num_bytes": …}], "checksum": …}

Its replacement by a rename is the commit of a change: bytes of a segment beyond the listed length do not
count. Without the file there are no live items.
"""

import json
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from re4.bundle.layout import LIVE, LIVE_FOLDER
from re4.bundle.manifest import checksum_of, first_problem
from re4.bundle.safe_files import is_folder, names_in, open_folder, open_regular, read_small
from re4.common.errors import BundleDamagedError, BundleError
from re4.common.files import replacing

SCHEMA_VERSION: Final = 1
SEGMENT_PATTERN: Final = r"^[0-9]{16}-[0-9a-f]{8}\.(items|compacted)$"
"""First sequence number, a random part, and whether the segment holds the state up to a compaction."""

_MAX_BYTES: Final = 1 << 20
_ADVICE: Final = (
    "Put back a copy, or make it again from its segments: re4 items repair. Until then servers keep the last "
    "good state"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Segment(_Strict):
    """A file of records in the folder of live items."""

    name: Annotated[str, Field(pattern=SEGMENT_PATTERN, max_length=40)]
    num_bytes: Annotated[int, Field(ge=0)]
    """How many of its bytes count."""

    @property
    def is_compacted(self) -> bool:
        """Whether it holds the state up to a compaction, instead of every change."""
        return self.name.endswith(".compacted")


class LiveList(_Strict):
    """All durable changes, in the order of the segments."""

    schema_version: int = SCHEMA_VERSION
    sequence: Annotated[int, Field(ge=0)] = 0
    """Of the last change."""
    compacted_sequence: Annotated[int, Field(ge=0)] = 0
    """Changes up to this one are in the compacted segment."""
    segments: tuple[Segment, ...] = ()
    checksum: str | None = None

    @model_validator(mode="after")
    def _is_in_order(self) -> "LiveList":
        names = [segment.name for segment in self.segments]
        if len(set(names)) < len(names) or any(segment.is_compacted for segment in self.segments[1:]):
            raise ValueError("segments: one listed twice, or a compacted one that is not the first")
        return self

    @property
    def num_bytes(self) -> int:
        """Size of all segments."""
        return sum(segment.num_bytes for segment in self.segments)


def read_live_list(bundles: Path) -> LiveList:
    """Read the list.

    Raises:
        BundleError: no such directory, or the file was written by code with another schema version.
        BundleDamagedError: the file is damaged, or it is missing although there are segments.
        BundleUnavailableError: it cannot be read at this moment.
    """
    where = str(bundles / LIVE)
    with open_folder(bundles) as folder:
        if LIVE not in names_in(folder, where=bundles):
            if has_segments(bundles):
                raise BundleDamagedError(f"{where}: missing, but {LIVE_FOLDER}/ has segments. {_ADVICE}")
            return LiveList()
        with open_regular(LIVE, folder=folder, where=where) as descriptor:
            content = read_small(descriptor, max_bytes=_MAX_BYTES, where=where)
    return parse_live_list(content, where)


def has_segments(bundles: Path) -> bool:
    """Return whether the folder of live items holds any segment."""
    path = bundles / LIVE_FOLDER
    if not is_folder(path):
        return False
    with open_folder(path) as folder:
        return any(name.endswith((".items", ".compacted")) for name in names_in(folder, where=path))


def write_live_list(bundles: Path, live: LiveList) -> None:
    """Replace the list: the commit of a change."""
    facts = live.model_dump(mode="json")
    facts["checksum"] = checksum_of(facts)
    with replacing(bundles / LIVE) as part:
        part.write_text(json.dumps(facts) + "\n", encoding="ascii")


def parse_live_list(content: bytes, where: str) -> LiveList:
    """Return the list that a file holds.

    Raises:
        BundleError: it was written by code with another schema version.
        BundleDamagedError: it is damaged.
    """
    try:
        facts = json.loads(content)
        version = facts["schema_version"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise BundleDamagedError(f"{where}: not a list of live items ({error}). {_ADVICE}") from None
    if version != SCHEMA_VERSION:
        if facts.get("checksum") == checksum_of(facts):
            raise BundleError(
                f"{where}: schema_version is {version!r:.20}, this code reads {SCHEMA_VERSION}. Run the code "
                "that wrote it"
            )
        raise BundleDamagedError(f"{where}: changed after it was written. {_ADVICE}")
    try:
        live = LiveList.model_validate_json(content)
    except ValidationError as error:
        raise BundleDamagedError(f"{where}: {first_problem(error)}. {_ADVICE}") from None
    if live.checksum != checksum_of(facts):
        raise BundleDamagedError(f"{where}: changed after it was written. {_ADVICE}")
    return live
