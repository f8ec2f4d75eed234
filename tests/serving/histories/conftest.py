"""The stores that the suite runs on, with a real server beside the tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from valkey_server import PROGRAM, ValkeyServer

from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.lmdb_store import LmdbStore
from re4.serving.histories.redis_store import RedisStore
from re4.serving.histories.store import Bounds, HistoryStore

BOUNDS = Bounds(max_events=20, max_age_ms=1_000_000)

OpenStore = Callable[[], HistoryStore]


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A cluster of one node, which has all slots."""
    import redis

    folder = tmp_path_factory.mktemp("valkey-cluster")
    with ValkeyServer(folder, "--cluster-enabled", "yes") as running:
        client = redis.Redis(port=running.port)
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            pass
        client.close()
        yield running


@pytest.fixture(params=["lmdb", *(["redis", "cluster"] if PROGRAM else [])])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens one store, as often as the test wishes: each time as another server would."""
    if request.param == "lmdb":
        # LMDB opens a folder once in a process; the environment is what two threads share.
        environment = LmdbEnvironment(tmp_path / "histories", 1 << 30)
        yield lambda: LmdbStore(environment, BOUNDS)
        environment.close()
        return
    name = "valkey" if request.param == "redis" else "valkey_cluster"
    running: ValkeyServer = request.getfixturevalue(name)
    url = running.url if request.param == "redis" else f"redis+cluster://127.0.0.1:{running.port}"
    opened: list[RedisStore] = []

    def open_another() -> RedisStore:
        log = LmdbEnvironment(tmp_path / f"log-{len(opened)}", 1 << 30)
        opened.append(RedisStore(url, BOUNDS, timeout_s=5.0, event_log=log))
        return opened[-1]

    yield open_another
    for store in opened:
        store.close()
