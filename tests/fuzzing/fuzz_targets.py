"""The parsers of the project, each as a function of bytes that raises nothing for any input.

A parser either refuses its input with the error that it documents, or gives a value that the code behind it
can use, so each target also uses the value. The functions of `TARGETS` prepare a target in an empty folder.
"""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from catalogue_targets import canary, catalogue_calls, fold_in, http_calls, remote_files, titles
from fuzz_inputs import Input, Parse, answer_all, changed_files
from small_bundles import SmallVersion, load
from transport_targets import grpc_framing, http2_bytes
from update_targets import (
    cold_start,
    history_calls,
    ingest_lines,
    item_calls,
    live_items,
    live_records,
    tombstones,
)

from re4.bundle.attributes.reader import Attributes
from re4.bundle.golden import GoldenQueries
from re4.bundle.hidden_ids import read_hidden, write_hidden
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import CURRENT, GOLDEN, HIDDEN
from re4.bundle.manifest import MAX_MANIFEST_BYTES, dump_manifest, parse_manifest
from re4.bundle.publishing.current import read_current
from re4.bundle.verify import read_manifest
from re4.common.errors import BundleError, DataError, RequestError, SecurityError, UsageError
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.validation import CheckedRequest, check_encode, check_retrieve, check_user
from re4.serving.auth.tokens import parse_tokens
from re4.serving.processes.messages import from_line
from re4.serving.protocol.decoding import decode
from re4.serving.settings import ServerSettings

_MAX_EVENT_BYTES = 1 << 16


def requests(folder: Path) -> Parse:
    """Requests as they come from the wire."""
    snapshots = [
        load(SmallVersion(has_attributes=True), folder / "string"),
        load(SmallVersion(id_kind="int"), folder / "int"),
    ]
    settings = ServerSettings()

    def checked(data: bytes) -> Iterator[CheckedRequest | RequestError]:
        kind, snapshot = data[0] % 3, snapshots[data[0] // 3 % 2]
        if kind == 0:
            yield check_retrieve(decode(pb.RetrieveRequest, data[1:]), snapshot, settings)
        elif kind == 1:
            batch = decode(pb.BatchRetrieveRequest, data[1:])
            yield from (check_user(user, snapshot, settings) for user in batch.users[:8])
        else:
            yield check_encode(decode(pb.EncodeRequest, data[1:]), snapshot, settings)

    def parse(data: bytes) -> None:
        try:
            found = list(checked(data)) if data else []
        except RequestError:
            return
        answer_all([each for each in found if isinstance(each, CheckedRequest)])

    return parse


def search_options(folder: Path) -> Parse:
    """Filters, policies, search efforts and exclusions: any fields, with known names more often than not."""
    version = SmallVersion(has_attributes=True)
    snapshot, settings = load(version, folder), ServerSettings()
    names = ["colour", "tags", "is_even", ""]
    values = ["red", "green", "blue", "a", "b", "e", "true", "false", ""]

    def text(source: Input, known: list[str]) -> str:
        place = source.number()
        return known[place] if place < len(known) else source.text()

    def ids(source: Input) -> list[str]:
        return [text(source, version.ids[:40]) for _ in range(source.number() % 12)]

    def parse(data: bytes) -> None:
        source, batch = Input(data), []
        while source and len(batch) < 8:
            request = pb.RetrieveRequest(
                history=pb.ItemIds(strings=ids(source)),
                exclude=pb.ItemIds(strings=ids(source)),
                num_candidates=source.number(2),
                exclude_history=bool(source.number() % 2),
                return_interests=bool(source.number() % 2),
                search_effort=source.real(),
                merge_policy=source.number() % 8,
                diversity=source.real(),
                diversity_attribute=text(source, names),
                num_reasons=source.number() % 60,
            )
            for _ in range(source.number() % 4):
                several = [text(source, values) for _ in range(source.number() % 5)]
                request.filters.add(
                    attribute=text(source, names), values=several, drop=source.number() % 2 > 0
                )
            one = check_user(request, snapshot, settings)
            if isinstance(one, CheckedRequest):
                batch.append(one)
        answer_all(batch)

    return parse


def manifest(_: Path) -> Parse:
    """A version's manifest."""

    def parse(data: bytes) -> None:
        try:
            found = parse_manifest(data, where="manifest.json")
        except BundleError:
            return
        found.items.required_files(found.index)
        try:
            written = dump_manifest(found)
        except BundleError:  # the indentation makes it too long
            assert len(data) > MAX_MANIFEST_BYTES // 4
            return
        assert parse_manifest(written, where="again").model_dump() == found.model_dump()

    return parse


def hidden(folder: Path) -> Parse:
    """The list of hidden items, with catalogues of both kinds of ids."""
    snapshots = [load(SmallVersion(), folder / "string"), load(SmallVersion(id_kind="int"), folder / "int")]

    def parse(data: bytes) -> None:
        (folder / HIDDEN).write_bytes(data)
        try:
            found = read_hidden(folder)
        except BundleError:
            return
        for snapshot in snapshots:
            snapshot.with_hidden(found)
        write_hidden(folder, found)
        assert read_hidden(folder) == found

    return parse


def current(folder: Path) -> Parse:
    """The name of the live version."""

    def parse(data: bytes) -> None:
        (folder / CURRENT).write_bytes(data)
        try:
            name = read_current(folder)
        except BundleError:
            return
        assert "/" not in name

    return parse


def tokens(folder: Path) -> Parse:
    """The file of tokens."""

    def parse(data: bytes) -> None:
        try:
            callers = parse_tokens(data, folder / "tokens.toml")
        except SecurityError:
            return
        for caller in callers.values():
            if caller.rate is not None:
                caller.rate.charge()
                caller.rate.overdraw(256)

    return parse


def settings_file(folder: Path) -> Parse:
    """The settings file of a server."""
    path = folder / "serve.toml"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = ServerSettings.gather({}, file=path, environment={})
        except UsageError:
            return
        assert ServerSettings.from_json(found.to_json()).to_json() == found.to_json()
        found.effective()

    return parse


def settings_environment(_: Path) -> Parse:
    """Settings from environment variables, one `NAME=value` in a line."""

    def parse(data: bytes) -> None:
        lines = data.decode("utf-8", "surrogateescape").split("\n")  # as Python gives the environment
        environment = {f"RE4_SERVE_{line.partition('=')[0]}": line.partition("=")[2] for line in lines}
        try:
            found = ServerSettings.gather({}, file=None, environment=environment)
        except UsageError:
            return
        assert ServerSettings.from_json(found.to_json()).to_json() == found.to_json()

    return parse


def messages(_: Path) -> Parse:
    """A line between the supervisor and its workers."""

    def parse(data: bytes) -> None:
        try:
            from_line(data)
        except ValueError:
            return

    return parse


def _of_version(folder: Path, version: SmallVersion, prefix: str) -> tuple[Path, dict[str, bytes], Any]:
    path = folder / "made" / version.publish(folder / "made")
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.name.startswith(prefix)}
    assert files
    return path, files, read_manifest(path).items


def string_ids(folder: Path) -> Parse:
    """The files of string ids."""
    _, files, info = _of_version(folder, SmallVersion(num_items=20), "item_ids")

    def parse(data: bytes) -> None:
        changed_files(folder, files, data)
        try:
            ids = ItemIds.open(folder, "string", info.num_items)
            ids.check()
        except BundleError:
            return
        all_rows = np.arange(info.num_items)
        names = ids.ids(all_rows)
        ids.padded(all_rows)
        assert len(ids.rows([*names, "unknown", "", "x" * 5000])) == info.num_items + 3
        ids.rows(names[:3])

    return parse


def int_ids(folder: Path) -> Parse:
    """The files of integer ids."""
    _, files, info = _of_version(folder, SmallVersion(num_items=20, id_kind="int"), "item_ids")

    def parse(data: bytes) -> None:
        changed_files(folder, files, data)
        try:
            ids = ItemIds.open(folder, "int", info.num_items)
            ids.check()
        except BundleError:
            return
        names = ids.ids(np.arange(info.num_items))
        rows = ids.rows([*names, 2**64, -(2**63)])
        assert rows.max() < info.num_items

    return parse


def attributes(folder: Path) -> Parse:
    """The files of single-valued and multi-valued attributes."""
    version = SmallVersion(num_items=20, has_attributes=True)
    _, files, info = _of_version(folder, version, "attribute")

    def parse(data: bytes) -> None:
        changed_files(folder, files, data)
        try:
            found = Attributes.open(folder, info.attributes, info.num_items)
            found.check()
        except BundleError:
            return
        for name in found.names:
            attribute = found[name]
            values = attribute.values()
            codes = [int(code) for code in attribute.value_codes([*values, "unknown", ""]) if code >= 0]
            attribute.num_with(codes)
            rows = attribute.rows_with(codes)
            assert attribute.mask_with(codes)[rows].all()
            attribute.have_any(np.arange(info.num_items), codes)

    return parse


def archives(folder: Path) -> Parse:
    """The archive of golden queries."""
    _, files, _ = _of_version(folder, SmallVersion(num_golden=1), GOLDEN)

    def parse(data: bytes) -> None:
        changed_files(folder, files, data)
        try:
            GoldenQueries.read(folder / GOLDEN)
        except BundleError:
            return

    return parse


def event_logs(folder: Path) -> Parse:
    """Event logs and catalogues as text, also packed. The parquet parser is not ours."""
    from re4.training.data.catalogue import read_catalogue
    from re4.training.data.events import Columns, read_events
    from re4.training.data.tables.row_store import in_memory

    suffixes = [".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz"]

    def parse(data: bytes) -> None:
        if not data or len(data) > _MAX_EVENT_BYTES:
            return
        kind = data[0] % (2 * len(suffixes))
        suffix, content = suffixes[kind % len(suffixes)], data[1:]
        path = folder / f"log{suffix}"
        # A damaged archive is rare enough as it is: most inputs are packed as they are read.
        path.write_bytes(gzip.compress(content, 1) if suffix.endswith(".gz") and data[0] < 200 else content)
        try:
            if kind < len(suffixes):
                log = read_events(path, Columns())
                assert log.events.num_events > 0
                assert log.events.users_E.max() < len(log.events.user_ids)
                assert log.events.items_E.max() < len(log.events.item_ids)
            else:
                read_catalogue(path, "item", in_memory)
        except DataError:
            return

    return parse


TARGETS: dict[str, Callable[[Path], Parse]] = {
    each.__name__: each
    for each in (
        *(requests, search_options, manifest, hidden, current, tokens, settings_file, settings_environment),
        *(messages, string_ids, int_ids, attributes, archives, event_logs),
        *(item_calls, history_calls, live_items, live_records, ingest_lines, tombstones, cold_start),
        *(grpc_framing, http2_bytes),
        *(catalogue_calls, http_calls, canary, titles, fold_in, remote_files),
    )
}
