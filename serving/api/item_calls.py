"""The calls that change items: UpsertItems and RemoveItems."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from re4.bundle.layout import IS_COLD
from re4.bundle.live_items.records import Change, Removal, checked_id, checked_upsert
from re4.common.errors import LiveItemsError, RequestError
from re4.protos.v1 import retrieval_pb2
from re4.serving.observability.call_context import Call
from re4.serving.observability.metrics import CallMetrics
from re4.serving.protocol.decoding import decode
from re4.serving.settings import ServerSettings
from re4.serving.versions.live_items_writer import LiveItemsWriter
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

_SLICE: Final = 16
"""Items that are checked between two turns of the event loop."""


class ItemCalls:
    """Answers the calls that change items. Belongs to one event loop."""

    def __init__(self, live: LiveVersion, settings: ServerSettings, metrics: CallMetrics) -> None:
        """Start without a call.

        Args:
            live: The version whose items are changed.
            settings: For the limits.
            metrics: Counts the changes.
        """
        self._live = live
        self._settings = settings
        self._metrics = metrics
        self._writer = LiveItemsWriter(
            settings.max_queue_ms, on_written=self._on_written, on_commit=metrics.items_committed
        )

    async def upsert_items(self, data: bytes, time_left: Callable[[], float | None], call: Call) -> bytes:
        """Answer UpsertItems."""
        snapshot = self._live.current()
        self._writer.check(1, time_left())
        items = decode(retrieval_pb2.UpsertItemsRequest, data).items
        self._check_number(len(items))
        changes: list[Change] = []
        for place, item in enumerate(items):
            changes.append(_upsert(item, place, snapshot))
            if place % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        live = snapshot.live
        most = self._settings.limits.max_num_live_items
        if live is not None and live.num_visible + len(changes) > most:
            raise LiveItemsError(
                f"{live.num_visible:,} live items and {len(changes):,} more: at most {most:,} are allowed; "
                "let a rebuild take them in"
            )
        return await self._write(changes, snapshot, time_left, call)

    async def remove_items(self, data: bytes, time_left: Callable[[], float | None], call: Call) -> bytes:
        """Answer RemoveItems."""
        snapshot = self._live.current()
        self._writer.check(1, time_left())
        message = decode(retrieval_pb2.RemoveItemsRequest, data)
        kind = snapshot.item_ids.kind
        strings, ints = message.items.strings, message.items.ints
        ids: list[Any] = [*strings, *ints]
        self._check_number(len(ids))
        changes = [Removal(checked_id(id_, kind)) for id_ in ids]
        num_unknown = int((snapshot.item_ids.rows(ids) < 0).sum())
        return await self._write(changes, snapshot, time_left, call, num_unknown)

    async def write_evidence(self, snapshot: Snapshot, changes: Sequence[Change]) -> int:
        """Make the evidence of recorded events durable.

        Raises:
            LiveItemsError: it cannot be written.
        """
        return await self._writer.write(snapshot.path.parent, changes, None)

    def close(self) -> None:
        """End the thread."""
        self._writer.close()

    async def _write(
        self,
        changes: Sequence[Change],
        snapshot: Snapshot,
        time_left: Callable[[], float | None],
        call: Call,
        num_unknown: int = 0,
    ) -> bytes:
        self._writer.check(len(changes), time_left())
        call.charge(len(changes))
        sequence = await self._writer.write(snapshot.path.parent, changes, time_left())
        self._metrics.items_changed(len(changes), is_removal=isinstance(changes[0], Removal))
        return retrieval_pb2.EditItemsReply(
            sequence=sequence, version=snapshot.manifest.version, num_unknown=num_unknown
        ).SerializeToString()

    def _check_number(self, num_items: int) -> None:
        most = self._settings.limits.max_num_edited_items
        if not 1 <= num_items <= most:
            raise RequestError(f"items has {num_items} items; it may have from 1 to {most}")

    def _on_written(self) -> None:
        self._live.items_written.set()
        if self._live.snapshot is not None:
            self._writer.compact_if_due(self._live.snapshot.path.parent, *self._live.items_bytes)


def _upsert(item: retrieval_pb2.LiveItem, place: int, snapshot: Snapshot) -> Change:
    """Return the change of an item.

    Raises:
        RequestError: the item cannot be stored.
    """
    manifest = snapshot.manifest
    id_ = {"string_id": item.string_id, "int_id": item.int_id, None: None}[item.WhichOneof("id")]
    attributes: dict[str, list[str]] = {}
    for attribute in item.attributes:
        attributes.setdefault(attribute.name, []).extend(attribute.values)
    if IS_COLD in attributes:
        raise RequestError(f"items[{place}]: the attribute {IS_COLD!r} is set by the server; leave it out")
    try:
        return checked_upsert(
            id_,
            attributes,
            item.vector,
            kind=snapshot.item_ids.kind,
            space=manifest.items.space,
            embedding_dim=manifest.model.embedding_dim,
        )
    except RequestError as error:
        raise RequestError(f"items[{place}]: {error}") from None
