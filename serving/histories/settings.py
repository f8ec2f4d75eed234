"""The settings of histories by user id, and the store that they name."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from re4.bundle.remote.address import local_directory
from re4.common.errors import UsageError
from re4.serving.histories.store import Bounds, HistoryStore
from re4.serving.histories.user_record import MAX_EVENTS
from re4.settings.fields import check, setting

NO_HISTORIES: Final = "none"
_DAY_MS: Final = 86_400_000


class HistoryFallback(StrEnum):
    """The answer to a request with a user id where the store cannot be used."""

    NONE = "none"
    """The status UNAVAILABLE."""
    REQUEST = "request"
    """An answer by the history of the request alone, marked as such."""


@dataclass(frozen=True, kw_only=True)
class HistorySettings:
    """Histories by user id, and the event log."""

    histories: str | None = setting(
        None,
        "Store of users' events: a folder of this machine, redis://HOST:PORT/DB for a Redis or Valkey server "
        "(extra redis; rediss:// for TLS, redis+cluster:// for a cluster), or none.",
        default_text="folder BUNDLES.histories, made with the first event",
    )
    histories_password_file: Path | None = setting(
        None, "File with the password of the Redis server.", default_text="no password"
    )
    event_log: Path | None = setting(
        None,
        "Folder of the recorded events as parts of parquet, for re4 data prepare --events.",
        default_text="events in the folder of histories; BUNDLES.events with a Redis server",
    )
    event_part_s: float = setting(900.0, "Seconds between two parts of the event log.", low=1)
    max_history_events: int = setting(
        100, "Newest events of a user that are kept; older ones are dropped.", low=1, high=MAX_EVENTS
    )
    max_history_days: float = setting(365.0, "Days after which an event is no longer used.", low=0.001)
    max_history_bytes: int = setting(
        64 << 30,
        "Largest size of the embedded store, in bytes; nothing is allocated in advance.",
        low=1 << 20,
    )
    history_timeout_ms: float = setting(50.0, "Longest wait for the Redis server, in milliseconds.", low=1)
    history_fallback: HistoryFallback = setting(
        HistoryFallback.NONE,
        "Answer to a request with a user id while the store cannot be used: the status UNAVAILABLE (none), "
        "or candidates by the history of the request alone (request).",
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a value out of its bounds, or an address that cannot be used.
        """
        check(self)
        if self.histories is not None and "://" in self.histories:
            from re4.serving.histories.redis_store import check_url

            check_url(self.histories)
        elif self.histories_password_file is not None:
            raise UsageError("--histories-password-file is for a Redis server: give --histories redis://…")

    @property
    def is_remote(self) -> bool:
        """Whether the store is a Redis server."""
        return self.histories is not None and "://" in self.histories

    @property
    def bounds(self) -> Bounds:
        """What the store keeps of a user."""
        return Bounds(self.max_history_events, int(self.max_history_days * _DAY_MS))

    def store_folder(self, bundles: Path | None) -> Path | None:
        """Return the folder of the embedded store, or of the event log's queue; None for no histories."""
        if self.histories == NO_HISTORIES or (self.histories is None and bundles is None):
            return None
        if self.is_remote:
            parts = self.parts_folder(bundles)
            return None if parts is None else parts / "_queue"
        return Path(self.histories) if self.histories else _beside(bundles, ".histories")

    def parts_folder(self, bundles: Path | None) -> Path | None:
        """Return the folder of the event log's parts; None for no histories."""
        if self.event_log is not None or self.histories == NO_HISTORIES:
            return self.event_log
        if self.is_remote:
            return None if bundles is None else _beside(bundles, ".events")
        folder = self.store_folder(bundles)
        return None if folder is None else folder / "events"


def open_store(settings: HistorySettings, bundles: Path | None) -> HistoryStore | None:
    """Open the store of histories; None for no histories. Connects to nothing yet.

    Raises:
        UsageError: the store needs a package that is not installed, or its password cannot be read.
    """
    from re4.serving.histories.lmdb_environment import LmdbEnvironment

    folder = settings.store_folder(bundles)
    environment = None if folder is None else LmdbEnvironment(folder, settings.max_history_bytes)
    if settings.is_remote and settings.histories is not None:
        from re4.serving.histories.redis_store import RedisStore

        return RedisStore(
            settings.histories,
            settings.bounds,
            timeout_s=settings.history_timeout_ms / 1e3,
            event_log=environment,
            password=_password(settings.histories_password_file),
        )
    if environment is None:
        return None
    from re4.serving.histories.lmdb_store import LmdbStore

    return LmdbStore(environment, settings.bounds)


def _beside(bundles: Path | None, suffix: str) -> Path | None:
    if bundles is None:
        return None
    folder = local_directory(str(bundles), None).absolute()
    return folder.with_name(folder.name + suffix)


def _password(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--histories-password-file {file} cannot be read: {error}") from None
