"""Retrieval in this process by the code that a server runs: encode, search, merge."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from time import time
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

from re4 import __version__
from re4.bundle.hidden_ids import read_hidden
from re4.bundle.layout import MANIFEST
from re4.bundle.live_items.reader import LiveItemsReader
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.version_lease import VersionLease
from re4.bundle.verify import verify_version
from re4.common.errors import Re4Error, RequestError, UsageError
from re4.protos.v1 import retrieval_pb2
from re4.serving.api import replies
from re4.serving.api.batch_handler import RequestResult, answer_batch
from re4.serving.api.catalogue_calls import find_items, finish, get_items, list_values
from re4.serving.api.history_calls import with_stored_items
from re4.serving.api.validation import CheckedRequest, check_encode, check_user
from re4.serving.client.catalogue_values import (
    CatalogueItem,
    find_items_request,
    get_items_request,
    list_values_request,
    to_found,
    to_items,
    to_values,
)
from re4.serving.client.values import (
    AttributeFilter,
    Candidates,
    Interests,
    ItemIdList,
    RetrieveOptions,
    encode_request,
    retrieve_request,
    retrieve_requests,
    to_candidates,
    to_facts,
    to_interests,
)
from re4.serving.histories.settings import HistorySettings, open_store
from re4.serving.retrieval.devices.backend import open_backend
from re4.serving.retrieval.merging import POLICIES
from re4.serving.settings import Limits, ServerSettings
from re4.serving.versions.canary import VersionRouter
from re4.serving.versions.snapshot import Snapshot, load_snapshot
from re4.settings.fields import declared
from re4.settings.sources import checked

_NO_LIMIT = (1 << 32) - 1
"""The largest number that a request can carry. A server needs limits against its clients; here are none."""

UNLIMITED = Limits(
    max_num_candidates=_NO_LIMIT,
    max_num_history_ids=_NO_LIMIT,
    max_num_excluded_ids=_NO_LIMIT,
    max_num_filters=_NO_LIMIT,
    max_num_filter_values=_NO_LIMIT,
    max_num_reasons=_NO_LIMIT,
)
"""Of work in the caller's own process."""

_T = TypeVar("_T")


class Retriever:
    """A bundle version, loaded into this process. Use it in a `with` block; threads may share it.

    It answers as a server with the same bundle and settings does, and stays with its version when another one
    is published.
    """

    def __init__(self, snapshot: Snapshot, settings: ServerSettings, lease: VersionLease) -> None:
        """Wrap a loaded version; `Retriever.open` loads one."""
        self._snapshot: Snapshot | None = snapshot
        self._settings = settings
        self._lease = lease
        self._store = open_store(settings.history, None)
        self._lock = Lock()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        merge_policy: str = "max-score",
        fallback: Literal["none", "popular"] = "none",
        device: Literal["cpu", "cuda"] = "cpu",
        histories: str | Path | None = None,
    ) -> Self:
        """Verify every byte of a version and load it, with the hidden and live items of this moment.

        Args:
            path: A bundle directory, whose live version is loaded, or the folder of a version.
            merge_policy: How to merge the lists of the interests where a call names no policy: `max-score`,
                `equal-quota`, `attention-quota`, `round-robin` or `soft-quota`.
            fallback: Result for a user of whose history no item is known: an error (`none`), or the most
                popular items (`popular`).
            device: Where to encode and search. `cuda` needs the extra `gpu` and a flat or IVF index.
            histories: A server's store of users' events, for `user_id` and `user_ids`: a folder, or the
                address of a Redis server; None for none.

        Raises:
            BundleError: no version was published, or it is damaged or does not fit together.
            UsageError: a value that is not allowed.
            ServerError: the device cannot be used.
        """
        known = declared(ServerSettings)
        settings = ServerSettings(
            limits=UNLIMITED,
            merge_policy=merge_policy,
            fallback=checked("fallback", fallback, known["fallback"]),
            device=checked("device", device, known["device"]),
            history=HistorySettings(histories=None if histories is None else str(histories)),
        )
        if merge_policy not in POLICIES:
            raise UsageError(f"merge_policy is {merge_policy!r}; there is {', '.join(POLICIES)}")
        path = Path(path).absolute()
        version = path if (path / MANIFEST).exists() else live_version(path)
        lease = VersionLease(version)
        try:
            snapshot = load_snapshot(
                version,
                verify_version(version),
                max_batch_size=settings.max_batch_size,
                backend=open_backend(settings.device),
            )
            snapshot = snapshot.with_changes(
                read_hidden(version.parent), LiveItemsReader(version.parent).read().records
            )
        except BaseException:
            lease.release()
            raise
        return cls(snapshot, settings, lease)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the version. `re4 prune` may delete its files from now on."""
        self._snapshot = None
        if self._store is not None:
            self._store.close()
        self._lease.release()

    @property
    def version(self) -> str:
        """Name of the bundle version."""
        return self._open_snapshot().manifest.version

    def retrieve(
        self,
        history: Sequence[str] | Sequence[int] = (),
        num_candidates: int = 50,
        *,
        user_id: str = "",
        exclude: Sequence[str] | Sequence[int] = (),
        **options: Unpack[RetrieveOptions],
    ) -> Candidates:
        """Return candidates for one user.

        Args:
            history: Item ids of the user's events, oldest first.
            num_candidates: Number of candidates; fewer come only where the catalogue has no more.
            user_id: The user whose stored events come before those of `history`; empty for none.
            exclude: Item ids that must not be among the candidates.
            options: Filters, merge policy and more: see `RetrieveOptions`.

        Raises:
            RequestError: a wrong value; the message names it and the values allowed.
            NoUsableHistoryError: no item of the history is known, and there is no fallback.
        """
        request = retrieve_request(history, num_candidates, exclude, options, user_id)
        return _or_raise(*self._retrieve([request]))

    def retrieve_batch(
        self,
        histories: Sequence[Sequence[str] | Sequence[int]],
        num_candidates: int = 50,
        *,
        user_ids: Sequence[str] | None = None,
        exclude: Sequence[Sequence[str] | Sequence[int]] | None = None,
        **options: Unpack[RetrieveOptions],
    ) -> list[Candidates | Re4Error]:
        """Return candidates for any number of users, who are encoded and searched in batches.

        Args:
            histories: One history for each user.
            num_candidates: Number of candidates for each user.
            user_ids: One user id for each history, as in `retrieve`; None for none.
            exclude: One list of excluded item ids for each user; None for no exclusions.
            options: See `RetrieveOptions`; the same for all users.

        Returns:
            One entry for each user: candidates, or the error that `retrieve` raises for that user.

        Raises:
            RequestError: ids that are neither all strings nor all integers, an unknown merge policy, or
                `exclude` and `histories` differ in length.
        """
        users = retrieve_requests(histories, num_candidates, exclude, options, user_ids)
        size = self._settings.max_batch_size
        return [
            found
            for start in range(0, len(users), size)
            for found in self._retrieve(users[start : start + size])
        ]

    def encode(self, history: Sequence[str] | Sequence[int]) -> Interests:
        """Return the interests of one user, without a search.

        Raises:
            RequestError: a wrong value; the message names it and the values allowed.
            NoUsableHistoryError: no item of the history is known.
        """
        snapshot = self._open_snapshot()
        checked = check_encode(encode_request(history), snapshot, self._settings)
        reply = replies.encode_reply(_or_raise(*self._answer([checked])), snapshot)
        return to_interests(reply.interests, reply.version, reply.num_unknown_history_ids)

    def get_items(
        self, item_ids: Sequence[str] | Sequence[int], *, return_vectors: bool = False
    ) -> list[CatalogueItem]:
        """Return titles and attributes of items, as `RetrievalClient.get_items` does."""
        request = get_items_request(item_ids, return_vectors=return_vectors)
        steps = get_items(request, self._open_snapshot(), self._settings.limits)
        return to_items(item_ids, finish(steps))

    def find_items(
        self, text: str = "", *, filters: Sequence[AttributeFilter] = (), num_items: int = 20
    ) -> ItemIdList:
        """Return the ids of items by title, id or attributes, as `RetrievalClient.find_items` does."""
        request = find_items_request(text, filters, num_items)
        return to_found(finish(find_items(request, self._open_snapshot(), self._settings.limits)))

    def list_values(self, attribute: str, *, like: str = "", num_values: int = 20) -> dict[str, int]:
        """Return values of an attribute and their numbers of items, as `RetrievalClient.list_values` does."""
        request = list_values_request(attribute, like, num_values)
        return to_values(finish(list_values(request, self._open_snapshot())))

    def info(self) -> dict[str, Any]:
        """Return the fields of a server's `InfoReply` for this version, as `RetrievalClient.info` does."""
        snapshot = self._open_snapshot()
        reply = replies.info_reply(
            snapshot,
            self._settings,
            failed_version="",
            failure="",
            hidden_failure="",
            live_sequence=0 if snapshot.live is None else snapshot.live.sequence,
            live_failure="",
            server_version=__version__,
            is_browned_out=False,
            history_store="" if self._store is None else self._store.health().kind,
            history_failure="",
            router=VersionRouter(),
        )
        return to_facts(reply)

    def _retrieve(self, requests: Sequence[retrieval_pb2.RetrieveRequest]) -> list[Candidates | Re4Error]:
        """Check, answer and convert at most one batch of requests."""
        snapshot = self._open_snapshot()
        checked = self._with_stored([check_user(request, snapshot, self._settings) for request in requests])
        results = iter(self._answer([each for each in checked if isinstance(each, CheckedRequest)]))
        found: list[Candidates | Re4Error] = []
        for request in checked:
            outcome = request if isinstance(request, RequestError) else next(results)
            if isinstance(request, CheckedRequest) and isinstance(outcome, RequestResult):
                reply = replies.retrieve_reply(outcome, 0, request)
                found.append(to_candidates(retrieval_pb2.RetrieveReply.FromString(reply)))
            elif isinstance(outcome, Re4Error):
                found.append(outcome)
        return found

    def _with_stored(
        self, requests: Sequence[CheckedRequest | RequestError]
    ) -> list[CheckedRequest | RequestError]:
        """Return the requests with the stored histories of their users.

        Raises:
            HistoryStoreError: the store cannot be used.
        """
        named = [each for each in requests if isinstance(each, CheckedRequest) and each.user_id]
        if not named:
            return list(requests)
        if self._store is None:
            raise UsageError("user_id needs a store of histories: Retriever.open(…, histories=FOLDER)")
        stored = iter(self._store.newest_items([each.user_id for each in named], int(time() * 1e3)))
        return [
            with_stored_items(each, next(stored))
            if isinstance(each, CheckedRequest) and each.user_id
            else each
            for each in requests
        ]

    def _answer(self, requests: Sequence[CheckedRequest]) -> Sequence[RequestResult | Re4Error]:
        with self._lock:  # a pipeline belongs to one thread at a time
            return answer_batch(requests, self._settings.fallback) if requests else ()

    def _open_snapshot(self) -> Snapshot:
        if self._snapshot is None:
            raise UsageError("this Retriever is closed: open another one with Retriever.open")
        return self._snapshot


def _or_raise(outcome: _T | Re4Error) -> _T:
    if isinstance(outcome, Re4Error):
        raise outcome
    return outcome
