"""Targets of the calls that read the catalogue, of JSON over HTTP, and of files that came later."""

import asyncio
import json
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_inputs import Input, Parse, changed_files
from small_bundles import EMBEDDING_DIM, SmallVersion, load
from update_targets import Changes

from re4.bundle.fold_in import FoldInModel
from re4.bundle.hidden_ids import HiddenIds, read_hidden, write_hidden
from re4.bundle.layout import CANARY, CURRENT, HIDDEN, LIVE, TITLES
from re4.bundle.live_items.reader import LiveItemsReader
from re4.bundle.live_items.records import Removal, Upsert
from re4.bundle.live_items.writer import append_changes
from re4.bundle.manifest import checksum_of
from re4.bundle.publishing.canary import SCHEMA_VERSION, read_canary
from re4.bundle.publishing.current import read_current
from re4.bundle.remote.mirror import Mirror
from re4.bundle.remote.object_store import StoredObject
from re4.bundle.remote.push import push
from re4.bundle.titles import Titles
from re4.bundle.verify import verify_version
from re4.common.errors import BundleError, BundleUnavailableError, RequestError
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.catalogue_calls import find_items, finish, get_items, list_values
from re4.serving.api.service import RetrievalService
from re4.serving.http.http_transport import HttpTransport
from re4.serving.observability.metrics import CallMetrics
from re4.serving.processes.messages import SetCanary, from_line, to_line
from re4.serving.protocol.decoding import decode
from re4.serving.settings import ServerSettings
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

_NAMES = ["colour", "tags", "is_even", "price", ""]
_VALUES = ["red", "a", "true", "3.5", ""]


def _snapshots(folder: Path) -> list[Snapshot]:
    version = SmallVersion(has_attributes=True, has_titles=True)
    return [load(version, folder / "string"), load(SmallVersion(id_kind="int"), folder / "int")]


def _text(source: Input, known: list[Any]) -> str:
    place = source.number()
    return str(known[place]) if place < len(known) else source.text()


def catalogue_calls(folder: Path) -> Parse:
    """GetItems, FindItems and ListValues, as they come from the wire or with known names."""
    snapshots, limits = _snapshots(folder), ServerSettings().limits
    ids = SmallVersion().ids

    def made(kind: int, source: Input) -> bytes:
        if kind == 0:
            several = [_text(source, ids) for _ in range(source.number() % 8)]
            request: Any = pb.GetItemsRequest(items=pb.ItemIds(strings=several), return_vectors=True)
        elif kind == 1:
            request = pb.FindItemsRequest(text=_text(source, ["cafe", "ÉCLAIR", "<b>", *ids[:9]]))
            request.num_items = source.number(2)
            for _ in range(source.number() % 4):
                one = request.filters.add(attribute=_text(source, _NAMES), drop=source.number() % 2 > 0)
                one.values.extend(_text(source, _VALUES) for _ in range(source.number() % 4))
                if source.number() % 2:
                    one.range.at_least, one.range.below = _text(source, _VALUES), _text(source, _VALUES)
        else:
            request = pb.ListValuesRequest(attribute=_text(source, _NAMES), like=_text(source, _VALUES))
            request.num_values = source.number(2)
        return bytes(request.SerializeToString())

    def answer(kind: int, data: bytes, snapshot: Snapshot) -> None:
        if kind == 0:
            items = decode(pb.GetItemsRequest, data)
            reply = finish(get_items(items, snapshot, limits))
            assert len(reply.items) == len(items.items.strings) + len(items.items.ints)
            assert all(np.isfinite(each.vector).all() for each in reply.items)
        elif kind == 1:
            found = finish(find_items(decode(pb.FindItemsRequest, data), snapshot, limits)).items
            names = [*found.strings, *found.ints]
            assert len(set(names)) == len(names) <= limits.max_num_candidates
            assert (snapshot.item_ids.rows(names) >= 0).all()
        else:
            values = finish(list_values(decode(pb.ListValuesRequest, data), snapshot))
            assert len(set(values.values)) == len(values.num_items) <= 1000

    def parse(data: bytes) -> None:
        source = Input(data)
        while source:
            choice = source.number()
            kind, snapshot = choice % 3, snapshots[choice // 6 % 2]
            message = source.bytes(source.number(2)) if choice // 3 % 2 else made(kind, source)
            with suppress(RequestError):
                answer(kind, message, snapshot)

    return parse


def http_calls(folder: Path) -> Parse:
    """Requests of JSON over HTTP: a byte chooses the path, another a time limit; the rest is the body."""
    live, settings = LiveVersion(), ServerSettings()
    live.swap(_snapshots(folder)[0])
    loop = asyncio.new_event_loop()

    async def start() -> tuple[RetrievalService, HttpTransport]:
        service = RetrievalService(live, settings, CallMetrics())
        service._items.close()
        service._items._writer = Changes()  # type: ignore[assignment]
        return service, HttpTransport(service.methods(), settings.limits)

    service, transport = loop.run_until_complete(start())
    paths = [*sorted(transport._routes), "/v1/openapi.json"]
    timeouts = [b"", b"1", b"nan", b"0", b"1e400"]

    async def call(path: str, timeout: bytes, body: bytes) -> None:
        events: list[dict[str, Any]] = [{"type": "http.request", "body": body}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not events:
                await asyncio.Event().wait()
            return events.pop()

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        headers = [
            (b"content-type", b"application/json"),
            *([(b"x-server-timeout", timeout)] * bool(timeout)),
        ]
        route = transport._routes.get(path)
        verb = "GET" if route is None else route.verb
        scope = {"path": path, "method": verb, "headers": headers, "client": ("127.0.0.1", 1)}
        await transport._answer(scope, receive, send)
        assert sent[0]["status"] not in (500, 502), (path, sent)
        reply = json.loads(b"".join(event.get("body", b"") for event in sent[1:]))
        assert isinstance(reply, dict)

    def parse(data: bytes) -> None:
        path, timeout = paths[(data[0] if data else 0) % len(paths)], b""
        if len(data) > 1 and data[1] < len(timeouts):
            timeout = timeouts[data[1]]
        loop.run_until_complete(call(path, timeout, data[2:]))

    weakref.finalize(parse, lambda: (service.close(), loop.close()))
    return parse


def canary(folder: Path) -> Parse:
    """The file of the canary, and the message that workers get."""

    def parse(data: bytes) -> None:
        (folder / CANARY).write_bytes(data)
        try:
            found = read_canary(folder)
        except BundleError as error:
            str(error).encode()
            return
        assert found is not None
        command = SetCanary(
            path=found.version, files={}, share=found.share, is_shadow=found.is_shadow, failure=""
        )
        assert from_line(to_line(command)) == command
        assert 0 < found.share <= 1
        assert "/" not in found.version
        (folder / CANARY).write_text(json.dumps({"schema_version": SCHEMA_VERSION, **vars(found)}))
        assert read_canary(folder) == found

    return parse


def titles(folder: Path) -> Parse:
    """The files of titles."""
    version = SmallVersion(num_items=20, has_titles=True)
    path = folder / "made" / version.publish(folder / "made")
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.name.startswith("titles")}

    def parse(data: bytes) -> None:
        changed_files(folder, files, data)
        try:
            found = Titles(folder, version.num_items)
            found.check()
        except BundleError:
            return
        assert "".join(map(found.title, range(version.num_items))) == "".join(
            text for _, text in found.chunks()
        )

    assert TITLES in files
    return parse


def fold_in(folder: Path) -> Parse:
    """The archive for items that move with events."""
    path = folder / "fold_in.npz"
    interests_SD = np.ones((3, EMBEDDING_DIM), np.float32)
    precision_DD = np.eye(EMBEDDING_DIM, dtype=np.float32)
    model = FoldInModel(
        interests_SD=interests_SD, log_partition_S=np.zeros(3, np.float32), precision_DD=precision_DD
    )
    model.write(path)
    files = {path.name: path.read_bytes()}

    def parse(data: bytes) -> None:
        changed_files(folder, files, data)
        with suppress(BundleError):
            FoldInModel.read(path, EMBEDDING_DIM)

    return parse


class _Store:
    """Objects in memory, in place of a bucket."""

    url = "s3://bucket/shop"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, name: str) -> StoredObject | None:
        content = self.objects.get(name)
        return None if content is None else StoredObject(content, "", None)

    def size(self, name: str) -> int | None:
        return None

    def put(self, name: str, content: bytes | Path) -> None:
        self.objects[name] = content.read_bytes() if isinstance(content, Path) else content

    def put_if_unchanged(self, name: str, content: bytes, before: StoredObject | None) -> bool:
        self.put(name, content)
        return True

    def old_names(self, prefix: str, min_age_s: float) -> list[str]:
        return []

    def delete(self, names: list[str]) -> None:
        assert not names

    def chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        if name not in self.objects or start >= len(self.objects[name]):
            raise BundleUnavailableError(f"{name}: no such range")
        yield self.objects[name][start:stop]


def remote_files(folder: Path) -> Parse:
    """A mirror of changed objects; odd inputs get a right checksum of the manifest."""
    source, copy = folder / "source", folder / "copy"
    first = SmallVersion(num_items=20, num_golden=1).publish(source)
    write_hidden(source, HiddenIds(ids=("item-3-é",)))
    for change in (Upsert("new", {}), Removal("item-2-é")):
        append_changes(source, [change])
    store = _Store()
    push(source, store)  # type: ignore[arg-type]
    files = {name.replace("/", "|"): content for name, content in sorted(store.objects.items())}
    changed = folder / "changed"
    changed.mkdir()
    mirror = Mirror(store, copy)  # type: ignore[arg-type]

    def parse(data: bytes) -> None:
        for path in changed.iterdir():
            path.unlink()
        small = {name: content for name, content in files.items() if len(content) < 4096}
        changed_files(changed, small, data[1:])
        store.objects = {
            name.replace("|", "/"): (changed / name).read_bytes() if name in small else content
            for name, content in files.items()
        }
        if data and data[0] % 2:
            with suppress(ValueError, TypeError, RecursionError):
                name = f"{first}/manifest.json"
                facts = json.loads(store.objects[name])
                facts["checksum"] = checksum_of(facts)
                store.objects[name] = json.dumps(facts).encode()
        with suppress(BundleError):
            mirror.update()
        if (copy / CURRENT).exists():
            verify_version(copy / read_current(copy))
        if (copy / HIDDEN).exists():
            read_hidden(copy)
        if (copy / LIVE).exists():
            with suppress(BundleError):
                LiveItemsReader(copy).read()
        assert {path.name for path in folder.iterdir()} == {"source", "copy", "changed"}
        for name in (CURRENT, HIDDEN, LIVE, ".mirror.LIVE"):
            (copy / name).unlink(missing_ok=True)
        if data and data[0] % 4 > 1:
            for version in copy.glob("*Z-*"):
                version.rename(folder / "gone")
                for path in (folder / "gone").iterdir():
                    path.unlink()
                (folder / "gone").rmdir()

    return parse
