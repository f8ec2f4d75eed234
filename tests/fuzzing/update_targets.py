"""Targets of what changes while a server runs: items, events, and the files that hold them."""

import asyncio
import hashlib
import json
import struct
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from fuzz_inputs import Input, Parse, answer_all, changed_files
from small_bundles import EMBEDDING_DIM, SmallVersion, load

from re4.bundle.attributes.reader import Attributes
from re4.bundle.cold_start import ColdStart, num_weights
from re4.bundle.layout import COLD_START, LIVE, LIVE_FOLDER
from re4.bundle.live_items.compaction import repair
from re4.bundle.live_items.live_list import LiveList, Segment, write_live_list
from re4.bundle.live_items.reader import LiveItemsReader
from re4.bundle.live_items.records import (
    Change,
    Evidence,
    Record,
    Removal,
    Upsert,
    decode_records,
    encode_record,
)
from re4.bundle.live_items.segments import MAGIC
from re4.bundle.live_items.state import LiveState, read_live_state
from re4.bundle.live_items.writer import append_changes
from re4.bundle.manifest import checksum_of
from re4.bundle.verify import read_manifest
from re4.common.errors import BundleError, DataError, NoUsableHistoryError, RequestError
from re4.histories.event_parts import event_table
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.history_calls import HistoryCalls
from re4.serving.api.item_calls import ItemCalls
from re4.serving.api.validation import check_retrieve
from re4.serving.client.ingest import opened
from re4.serving.client.values import record_events_request
from re4.serving.histories.event_log import Part
from re4.serving.histories.settings import HistorySettings
from re4.serving.observability.call_context import Call
from re4.serving.observability.metrics import CallMetrics
from re4.serving.settings import ServerSettings
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot
from re4.training.data.tables.tombstones import FORGOTTEN, covered, read_tombstones

_VALUES = ["red", "green", "a", "b", "true", ""]
_NAMES = ["colour", "tags", "is_even", ""]


def _search(snapshot: Snapshot, records: Sequence[Record]) -> None:
    """Apply changes to a version and answer from it."""
    overlay = snapshot.new_overlay()
    overlay.apply(records)
    live = snapshot.with_live(overlay.view())
    history = SmallVersion(id_kind=snapshot.item_ids.kind).ids[:2]
    ids = pb.ItemIds(**{"strings" if snapshot.item_ids.kind == "string" else "ints": history})
    answer_all([check_retrieve(pb.RetrieveRequest(history=ids, num_candidates=80), live, ServerSettings())])


def _is_written_whole(records: Sequence[Record]) -> None:
    """The records can be written, and are read as they were."""
    content = b"".join(map(encode_record, records))
    again = [record for _, record in decode_records(content, where="again")]
    assert b"".join(map(encode_record, again)) == content


class Changes:
    """Takes the changes of calls, in place of a writer with a disk."""

    def __init__(self) -> None:
        self.taken: list[Change] = []

    def check(self, num_changes: int, time_left_s: float | None) -> None:
        pass

    async def write(self, bundles: Path, changes: Sequence[Change], time_left_s: float | None) -> int:
        self.taken += changes
        return len(self.taken)

    def close(self) -> None:
        pass


def item_calls(folder: Path) -> Parse:
    """UpsertItems and RemoveItems, as they come from the wire or with known names."""
    version = SmallVersion(has_attributes=True)
    snapshots = [load(version, folder / "string"), load(SmallVersion(id_kind="int"), folder / "int")]
    metrics, loop = CallMetrics(), asyncio.new_event_loop()
    calls = [ItemCalls(_live(snapshot), ServerSettings(), metrics) for snapshot in snapshots]
    for each in calls:
        each.close()

    def made(source: Input) -> bytes:
        request = pb.UpsertItemsRequest()
        while source and len(request.items) < 8:
            place = source.number()
            item = request.items.add(string_id=version.ids[place] if place < 60 else source.text())
            for _ in range(source.number() % 4):
                name, value = source.number(), source.number()
                item.attributes.add(
                    name=_NAMES[name] if name < len(_NAMES) else source.text(),
                    values=[_VALUES[value] if value < len(_VALUES) else source.text()],
                )
            if source.number() % 2:
                item.vector.extend(source.real() for _ in range(EMBEDDING_DIM))
        return request.SerializeToString()

    def parse(data: bytes) -> None:
        if not data:
            return
        kind, place = data[0] % 3, data[0] // 3 % 2
        own, changes = calls[place], Changes()
        own._writer = changes  # type: ignore[assignment]
        answer = own.remove_items if kind == 1 else own.upsert_items
        message = made(Input(data[1:])) if kind == 2 else data[1:]
        try:
            reply = loop.run_until_complete(answer(message, lambda: None, Call("")))
        except RequestError:
            return
        assert pb.EditItemsReply.FromString(reply).sequence == len(changes.taken)
        records = [Record(number, 0, change) for number, change in enumerate(changes.taken, 1)]
        _is_written_whole(records)
        _search(snapshots[place], records)

    weakref.finalize(parse, loop.close)
    return parse


def _live(snapshot: Snapshot) -> LiveVersion:
    live = LiveVersion()
    live.swap(snapshot)
    return live


def history_calls(folder: Path) -> Parse:
    """RecordEvents, GetHistory and ForgetUser on an embedded store, and the part of the event log."""
    version = SmallVersion()
    snapshots = [load(version, folder / "string"), load(SmallVersion(id_kind="int"), folder / "int")]
    settings = ServerSettings(
        history=HistorySettings(
            histories=str(folder / "store"), max_history_events=5, max_history_bytes=1 << 28
        )
    )
    calls, loop = HistoryCalls(settings, CallMetrics()), asyncio.new_event_loop()
    assert calls._recorder is not None
    store: Any = calls._recorder._store
    users = ["u", "v", "u-é"]

    def made(source: Input) -> bytes:
        request = pb.RecordEventsRequest()
        for _ in range(source.number() % 8):
            user, item = source.number(), source.number()
            request.user_ids.append(users[user] if user < len(users) else source.text())
            request.items.strings.append(version.ids[item] if item < 60 else source.text())
            request.times_ms.append(source.number(1 + source.number() % 7))
            request.event_ids.append(source.text())
        return request.SerializeToString()

    def run(kind: int, source: Input, snapshot: Snapshot) -> None:
        if kind == 0:
            message = pb.GetHistoryRequest(user_id=source.text(), num_events=source.number())
            reply = pb.GetHistoryReply.FromString(
                loop.run_until_complete(calls.get_history(message.SerializeToString(), lambda: None))
            )
            assert len(reply.times_ms) == len(reply.items.strings) + len(reply.items.ints) <= 5
        elif kind == 1:
            data = source.bytes(source.number())
            loop.run_until_complete(calls.get_history(data, lambda: None))
        elif kind == 2:
            loop.run_until_complete(calls.forget_user(source.bytes(source.number()), lambda: None))
        else:
            data = made(source) if kind == 3 else source.bytes(source.number(2))
            recorded = calls.record_events(data, lambda: None, snapshot, Call(""))
            reply = pb.RecordEventsReply.FromString(loop.run_until_complete(recorded))
            sent = pb.RecordEventsRequest.FromString(data)
            assert reply.num_recorded + reply.num_duplicates == len(sent.user_ids)
            for user_id in set(sent.user_ids):
                assert store.newest_events(user_id, 0)
                loop.run_until_complete(
                    calls.get_history(pb.GetHistoryRequest(user_id=user_id).SerializeToString(), lambda: None)
                )

    def write(part: Part) -> None:
        if part.events:
            assert len(event_table(part.events)) == len(part.events)

    def parse(data: bytes) -> None:
        source = Input(data)
        while source:
            kind = source.number()
            try:
                run(kind % 5, source, snapshots[kind // 5 % 2])
            except (RequestError, NoUsableHistoryError):
                continue
        while store.event_log.rotate(write):
            pass
        with store._environment.writing() as (transaction, databases):
            transaction.drop(databases[b"histories"], delete=False)

    weakref.finalize(parse, lambda: (calls.close(), loop.close()))
    return parse


def _some_changes() -> list[Change]:
    vector_D = np.ones(EMBEDDING_DIM, np.float32)
    return [
        Upsert("new", {"colour": ("red",), "tags": ("a", "z")}),
        Upsert("item-1-é", {}, vector_D, "a" * 64),
        Removal("item-2"),
        Evidence("new", "a" * 64, 1.0, vector_D),
        Removal(7),
    ]


def live_items(folder: Path) -> Parse:
    """The list `LIVE` and the segments with any changes; odd inputs get a right checksum of the list."""
    snapshot = load(SmallVersion(has_attributes=True), folder / "version")
    made = folder / "made"
    made.mkdir()
    for change in _some_changes():
        append_changes(made, [change])
    (segment,) = (made / LIVE_FOLDER).iterdir()
    files = {LIVE: (made / LIVE).read_bytes(), f"{LIVE_FOLDER}/{segment.name}": segment.read_bytes()}
    bundles = folder / "bundles"
    (bundles / LIVE_FOLDER).mkdir(parents=True)

    def parse(data: bytes) -> None:
        for path in (bundles / LIVE_FOLDER).iterdir():
            path.unlink()
        changed_files(bundles, files, data[1:])
        if data and data[0] % 2:
            try:
                facts = json.loads((bundles / LIVE).read_bytes())
                facts["checksum"] = checksum_of(facts)
                (bundles / LIVE).write_text(json.dumps(facts), encoding="utf-8")
            except (ValueError, TypeError, RecursionError):
                pass
        try:
            found = LiveItemsReader(bundles).read()
        except BundleError:
            done = repair(bundles)
            assert len(read_live_state(bundles).items) == done.num_items
            return
        _search(snapshot, found.records)
        assert append_changes(bundles, [Removal("x")]) == found.sequence + 1

    return parse


def live_records(folder: Path) -> Parse:
    """Records of live items with right checksums and any content."""
    snapshots = [
        load(SmallVersion(has_attributes=True), folder / "string"),
        load(SmallVersion(id_kind="int"), folder / "int"),
    ]
    bundles = folder / "bundles"
    (bundles / LIVE_FOLDER).mkdir(parents=True)
    name = f"{1:016d}-{'0' * 8}.items"

    def parse(data: bytes) -> None:
        source, content, sequence = Input(data), MAGIC, 0
        while source and sequence < 8:
            sequence += 1
            kind, text = source.number(), source.bytes(source.number(2))
            vector = source.bytes(4 * (kind // 4 % (EMBEDDING_DIM + 2)))
            head = struct.pack("<QQBI", sequence, source.number(8), kind % 4, len(text))
            body = head + text + vector
            content += struct.pack("<II", len(body), zlib.crc32(body, len(body))) + body
        (bundles / LIVE_FOLDER / name).write_bytes(content)
        segments = (Segment(name=name, num_bytes=len(content)),)
        write_live_list(bundles, LiveList(sequence=sequence, segments=segments))
        try:
            records = LiveItemsReader(bundles).read().records
        except BundleError:
            return
        _is_written_whole(records)
        state = LiveState()
        state.apply(records)
        _is_written_whole(list(state.records()))
        state.removed(), state.upserts()
        for snapshot in snapshots:
            _search(snapshot, records)

    return parse


def ingest_lines(folder: Path) -> Parse:
    """Files of JSON lines, and the calls that record their events."""
    path = folder / "events.jsonl"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        try:
            for lines in opened(str(path), None):  # type: ignore[arg-type]
                for batch in lines.batches(3):
                    for event in batch:
                        users, items, times_ms, event_ids = zip(event, strict=False)
                        record_events_request(users, items, times_ms, event_ids)
        except DataError:
            return

    return parse


def tombstones(folder: Path) -> Parse:
    """The notes of forgotten users beside the parts of the event log."""
    (folder / FORGOTTEN).mkdir()
    users = pl.Series(["u", "v"])
    digest = hashlib.sha256(b"u").hexdigest()

    def parse(data: bytes) -> None:
        (folder / FORGOTTEN / "a.jsonl").write_bytes(data.replace(b"U", digest.encode()))
        try:
            notes = read_tombstones(folder)
        except DataError:
            return
        covered(users, pl.Series([1, 2]), 1e3, notes)

    return parse


def cold_start(folder: Path) -> Parse:
    """The map from attribute values to vectors."""
    version = SmallVersion(num_items=20, has_attributes=True)
    path = folder / "made" / version.publish(folder / "made")
    info = read_manifest(path).items
    attributes = Attributes.open(path, info.attributes, info.num_items)
    weights_WD = np.ones((num_weights(info.attributes), EMBEDDING_DIM), np.float32)
    ColdStart(weights_WD=weights_WD, typical_norm=1.0, firsts={}).write(folder / COLD_START)
    files = {COLD_START: (folder / COLD_START).read_bytes()}

    def parse(data: bytes) -> None:
        changed_files(folder, files, data)
        try:
            found = ColdStart.read(folder / COLD_START, info.attributes, EMBEDDING_DIM)
        except BundleError:
            return
        assert np.isfinite(
            found.vectors_of_values(attributes, [{"colour": ["red"], "tags": ["a", "?"]}])
        ).all()
        found.vectors_of_rows(attributes, np.arange(info.num_items))

    return parse
