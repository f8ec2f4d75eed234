"""The store of histories in Redis or Valkey, for servers on many machines.

Each user is one sorted set: the score is the time, the member is mark and item. So every command has one key,
which a cluster can place anywhere, and an event that is sent twice stays one member. A look-up of many users
is one round trip. The event log stays on the machine of each server.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from re4.common.errors import HistoryStoreError, UsageError
from re4.common.extras import require
from re4.serving.histories.event_log import EventLog
from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.store import (
    MARK_BYTES,
    MAX_POPULAR,
    Bounds,
    Event,
    Item,
    LogEntry,
    StoredEvent,
    StoreHealth,
)

SCHEMES: Final = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")

_PREFIX: Final = b"re4:{"
_SUFFIX: Final = b"}:history"
_POPULAR: Final = b"re4:{popular}:items:%d"
_PERIOD_HALF_LIVES: Final = 64
_PLACES: Final = 1024
"""Events of one call and the same time stay in their order: their scores differ by 1 / `_PLACES` ms."""
_CHUNK_KEYS: Final = 1_000


def check_url(url: str) -> None:
    """Check the address of a Redis store.

    Raises:
        UsageError: an unknown scheme, or a password, which `Info` and the log would show.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise UsageError(f"--histories {url!r}: a store's scheme is one of {', '.join(SCHEMES)}")
    if parts.password or "password=" in parts.query:
        raise UsageError(
            "--histories holds a password, which the log and Info would show; write it into a file, and name "
            "that with --histories-password-file"
        )


class RedisStore:
    """Histories in Redis or Valkey."""

    is_local: Final = False

    def __init__(
        self,
        url: str,
        bounds: Bounds,
        *,
        timeout_s: float,
        event_log: LmdbEnvironment | None,
        password: str | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: `redis://HOST:PORT/DB`; `rediss` for TLS, `redis+cluster` for a cluster.
            bounds: What is kept of a user.
            timeout_s: Longest wait for a connection, and for an answer.
            event_log: Environment of this machine's event log; None to write none.
            password: Of the server; None for none.
        """
        check_url(url)
        self._where = urlsplit(url)._replace(query="").geturl()
        self._bounds = bounds
        self.event_log = None if event_log is None else EventLog(event_log)
        self._log_environment = event_log
        self._client = _client(url, timeout_s, password)

    def newest_items(self, user_ids: Sequence[str], now_ms: int) -> list[list[Item]]:
        """Return the items of the newest events of each user, oldest first, in one round trip."""
        with self._errors():
            pipeline = self._client.pipeline(transaction=False)
            for user_id in user_ids:
                self._add_range(pipeline, user_id, now_ms)
            return [
                [json.loads(member[MARK_BYTES:]) for member in found[::-1]] for found in pipeline.execute()
            ]

    def newest_events(self, user_id: str, now_ms: int) -> list[StoredEvent]:
        """Return the newest events of a user, oldest first."""
        with self._errors():
            pipeline = self._client.pipeline(transaction=False)
            self._add_range(pipeline, user_id, now_ms, with_scores=True)
            (found,) = pipeline.execute()
        return [_event(member, score) for member, score in found[::-1]]

    def append(self, events: Sequence[Event], now_ms: int, log: Sequence[LogEntry] = ()) -> list[bool]:
        """Add events, and return for each whether it was new. This machine's event log is durable first."""
        if log and self.event_log is not None and self._log_environment is not None:
            self._check_connection()
            with self._log_environment.writing() as (transaction, databases):
                for entry in log:
                    self.event_log.add_call(transaction, databases, entry.received_ms, entry.request)
        bounds, keys = self._bounds, {user_id: _key(user_id) for user_id, *_ in events}
        with self._errors():
            pipeline = self._client.pipeline(transaction=False)
            for place, (user_id, time_ms, mark, item) in enumerate(events):
                member = mark + json.dumps(item, ensure_ascii=False).encode()
                score = time_ms + (place % _PLACES) / _PLACES
                pipeline.zadd(keys[user_id], {member: score}, nx=True)
            for key in keys.values():
                pipeline.zremrangebyrank(key, 0, -bounds.max_events - 1)
                pipeline.pexpire(key, bounds.max_age_ms)
            return [bool(num_added) for num_added in pipeline.execute()[: len(events)]]

    def forget(self, user_id: str, now_ms: int) -> None:
        """Remove all that is stored of a user, and note it in this machine's event log."""
        with self._errors():
            newest = self._client.zrange(_key(user_id), 0, 0, desc=True, withscores=True)
        until_ms = max([now_ms, *(int(score) + 1 for _, score in newest)])
        if self.event_log is not None and self._log_environment is not None:
            with self._log_environment.writing() as (transaction, databases):
                self.event_log.add_tombstone(transaction, databases, now_ms, user_id, until_ms)
        with self._errors():
            self._client.delete(_key(user_id))

    def users(self) -> Iterator[tuple[str, list[StoredEvent]]]:
        """Yield every user with the stored events, oldest first."""
        with self._errors():
            for key in self._client.scan_iter(match=_PREFIX + b"*" + _SUFFIX, count=_CHUNK_KEYS):
                found = self._client.zrange(key, 0, -1, withscores=True)
                user_id = key[len(_PREFIX) : -len(_SUFFIX)].decode()
                yield user_id, [_event(member, score) for member, score in found]

    def remove_expired(self, now_ms: int) -> int:
        """Do nothing: the server removes users by the time to live of their keys."""
        return 0

    def add_popular(self, counts: Mapping[Item, float], now_ms: int, half_life_ms: float) -> list[Item]:
        """Add to the weights of popular items, and return those with the largest, best first.

        In place of older weights that shrink, newer ones grow: by 2 in each half-life since the beginning of
        a period. A period ends before they become too large, and the set of the last one still counts.
        """
        period = int(now_ms // (_PERIOD_HALF_LIVES * half_life_ms))
        keys = [_POPULAR % number for number in (period, period - 1)]
        ages = [now_ms / half_life_ms - _PERIOD_HALF_LIVES * number for number in (period, period - 1)]
        with self._errors():
            pipeline = self._client.pipeline(transaction=False)
            for item, count in counts.items():
                pipeline.zincrby(keys[0], count * 2.0 ** ages[0], json.dumps(item, ensure_ascii=False))
            if counts:
                pipeline.zremrangebyrank(keys[0], 0, -MAX_POPULAR - 1)
                pipeline.pexpire(keys[0], int(2 * _PERIOD_HALF_LIVES * half_life_ms))
            for key in keys:
                pipeline.zrange(key, 0, MAX_POPULAR - 1, desc=True, withscores=True)
            *_, newer, older = pipeline.execute()
        weights: dict[Item, float] = {}
        for found, age in ((newer, ages[0]), (older, ages[1])):
            for member, score in found:
                item = json.loads(member)
                weights[item] = weights.get(item, 0.0) + score * 0.5**age
        return sorted(weights, key=lambda item: -weights[item])[:MAX_POPULAR]

    def health(self) -> StoreHealth:
        """Return the number of keys and the memory that the server reports."""
        with self._errors():
            num_keys, facts = self._client.dbsize(), self._client.info("memory")
        memory = sum(_numbers(facts, "used_memory"))
        return StoreHealth(kind="redis", num_users=int(num_keys), num_bytes=memory)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        if self._log_environment is not None:
            self._log_environment.close()

    def _add_range(self, pipeline: Any, user_id: str, now_ms: int, *, with_scores: bool = False) -> None:
        """Add the command for a user's newest events, newest first."""
        pipeline.zrange(
            _key(user_id),
            "+inf",
            f"({now_ms - self._bounds.max_age_ms}",
            desc=True,
            byscore=True,
            offset=0,
            num=self._bounds.max_events,
            withscores=with_scores,
        )

    def _check_connection(self) -> None:
        """Raise if the server is away, before anything is written to the event log."""
        with self._errors():
            self._client.ping()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import redis

        try:
            yield
        except (redis.RedisError, OSError) as error:
            # The message of a server's refusal may repeat the command, and so a user id.
            is_refusal = isinstance(error, redis.ResponseError)
            reason = str(error).partition(" ")[0] if is_refusal else type(error).__name__
            raise HistoryStoreError(
                f"the store of histories at {self._where} does not answer as it should: {reason}. "
                "Look at that server and at the network; it is tried again by itself"
            ) from None


def _client(url: str, timeout_s: float, password: str | None) -> Any:
    """Return a client that connects with its first command."""
    require(f"--histories {urlsplit(url).scheme}://…", "redis")
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # One retry at once: a connection that the server closed while it was idle is no failure.
        "retry": Retry(NoBackoff(), 1),
    }
    if password is not None:
        options["password"] = password
    if urlsplit(url).scheme.endswith("+cluster"):
        return _LazyCluster(url.replace("+cluster", "", 1), options)
    return redis.Redis.from_url(url, **options)


class _LazyCluster:
    """A cluster client that connects with its first command, as the client of one server does."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url, self._options = url, options
        self._client: Any = None

    def __getattr__(self, name: str) -> Any:
        import redis

        if self._client is None:
            self._client = redis.RedisCluster.from_url(self._url, **self._options)
        return getattr(self._client, name)

    def pipeline(self, transaction: bool) -> Any:
        """Return a pipeline; a cluster has no transactions over several nodes."""
        return self.__getattr__("pipeline")()

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect_connection_pools()
            self._client.close()


def _key(user_id: str) -> bytes:
    return _PREFIX + user_id.encode() + _SUFFIX


def _event(member: bytes, score: float) -> StoredEvent:
    return StoredEvent(int(score), member[:MARK_BYTES], json.loads(member[MARK_BYTES:]))


def _numbers(facts: Any, name: str) -> Iterator[int]:
    """Yield a number of one server, or of each node of a cluster."""
    if name in facts:
        yield int(facts[name])
    else:
        for node in facts.values():
            yield from _numbers(node, name)
