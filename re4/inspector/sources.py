"""What a page looks at: servers by their client, and versions of bundle directories in this process."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol, Unpack

from re4.bundle.histories import read_histories
from re4.bundle.layout import HISTORIES
from re4.bundle.publishing.current import read_current
from re4.bundle.publishing.versions import version_names
from re4.bundle.verify import read_manifest
from re4.common.errors import BundleError, RequestError
from re4.serving.client.catalogue_values import CatalogueItem
from re4.serving.client.client import RetrievalClient
from re4.serving.client.connection import Connection
from re4.serving.client.values import AttributeFilter, Candidates, ItemIdList, RetrieveOptions

_MAX_LOADED: Final = 2
"""Versions that are loaded at once: as many as a page compares."""


class Source(Protocol):
    """A server or a version: `RetrievalClient` and `Retriever` are sources."""

    def retrieve(
        self,
        history: Sequence[str] | Sequence[int] = (),
        num_candidates: int = 50,
        *,
        user_id: str = "",
        exclude: Sequence[str] | Sequence[int] = (),
        **options: Unpack[RetrieveOptions],
    ) -> Candidates:
        """Return candidates for one user."""

    def get_items(
        self, item_ids: Sequence[str] | Sequence[int], *, return_vectors: bool = False
    ) -> list[CatalogueItem]:
        """Return titles and attributes of items."""

    def find_items(
        self, text: str = "", *, filters: Sequence[AttributeFilter] = (), num_items: int = 20
    ) -> ItemIdList:
        """Return the ids of items by title, id or attributes."""

    def list_values(self, attribute: str, *, like: str = "", num_values: int = 20) -> dict[str, int]:
        """Return values of an attribute with their numbers of items."""

    def info(self) -> dict[str, Any]:
        """Return the fields of `InfoReply`."""

    def close(self) -> None:
        """Free what the source holds."""


@dataclass(frozen=True, kw_only=True)
class SourceName:
    """A source that a page can choose."""

    key: str
    """In links: the address of a server, or the name of a version."""
    label: str
    """For people."""


class Sources:
    """All sources of a page, opened on first use. Threads may share it."""

    def __init__(
        self,
        *,
        addresses: Sequence[str] = (),
        bundles: Sequence[Path] = (),
        connection: Connection | None = None,
        histories: str | None = None,
    ) -> None:
        """Name the sources; nothing is opened yet.

        Args:
            addresses: HOST:PORT of servers.
            bundles: Bundle directories.
            connection: TLS and token for all servers.
            histories: Store of users' events, for versions: see `Retriever.open`.

        Raises:
            BundleError: a bundle directory has no version.
        """
        self._addresses = tuple(addresses)
        self._bundles = tuple(bundles)
        self._connection = connection
        self._histories = histories
        self._clients: dict[str, RetrievalClient] = {}
        self._loaded: OrderedDict[Path, Source] = OrderedDict()
        self._lock = Lock()
        for folder in bundles:
            read_current(folder)

    def names(self) -> list[SourceName]:
        """Return all sources: servers, then the versions of each directory, the live one first."""
        return [SourceName(key=address, label=f"server {address}") for address in self._addresses] + [
            SourceName(key=key, label=label) for key, label, _ in self._versions()
        ]

    def open(self, key: str) -> Source:
        """Return a source, opened if it was not.

        Raises:
            RequestError: there is no such source.
            BundleError: the version cannot be used.
        """
        with self._lock:
            if key in self._addresses:
                if key not in self._clients:
                    self._clients[key] = RetrievalClient(key, connection=self._connection)
                return self._clients[key]
            path = self._path(key)
            if path not in self._loaded:
                from re4.retriever import Retriever

                while len(self._loaded) >= _MAX_LOADED:
                    self._loaded.popitem(last=False)[1].close()
                self._loaded[path] = Retriever.open(path, fallback="popular", histories=self._histories)
            self._loaded.move_to_end(path)
            return self._loaded[path]

    def example_history(self, key: str) -> "Callable[[int], list[Any]] | None":
        """Return a function from the number of an example history to its ids; None where there are none."""
        if key in self._addresses:
            return None
        path = self._path(key)
        if not (path / HISTORIES).exists():
            return None
        return partial(_example_history, path)

    def close(self) -> None:
        """Close all sources."""
        for source in (*self._clients.values(), *self._loaded.values()):
            source.close()

    def _path(self, key: str) -> Path:
        for name, _, path in self._versions():
            if name == key:
                return path
        raise RequestError(f"there is no source {key!r:.80}: choose one of the list")

    def _versions(self) -> list[tuple[str, str, Path]]:
        """Return key, label and folder of all versions."""
        found = []
        for place, folder in enumerate(self._bundles):
            try:
                live = read_current(folder)
            except BundleError:
                live = ""
            newest_first = version_names(folder)[::-1]
            for name in sorted(newest_first, key=lambda each: each != live):
                key = name if place == 0 else f"{place + 1}:{name}"
                where = f" of {folder}" if len(self._bundles) > 1 else ""
                found.append((key, f"{'live: ' if name == live else ''}{name}{where}", folder / name))
        return found


def _example_history(path: Path, number: int) -> list[Any]:
    """Return the item ids of an example history of a version, oldest first."""
    from re4.bundle.ids.id_map import ItemIds

    manifest = read_manifest(path)
    rows_PL, lengths_P = read_histories(path / HISTORIES)
    if not 0 <= number < len(rows_PL):
        raise RequestError(f"example {number}: the version has examples 0 to {len(rows_PL) - 1}")
    ids = ItemIds.open(path, manifest.items.id_kind, manifest.items.num_items)
    return list(ids.ids(rows_PL[number, : lengths_P[number]][::-1]))
