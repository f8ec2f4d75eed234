"""`re4 rollback` while a server runs: the version before answers again, and no call fails meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from running_server import DEADLINE_S, RunningServer
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.versions_cli import rollback

HISTORY = [4, 9, 30]


def test_a_running_server_follows_a_rollback(tmp_path: Path) -> None:
    first, second = SmallVersion(seed=1), SmallVersion(seed=2)
    versions = {first.publish(tmp_path): first}
    options = ("--poll-interval-s", "0.02")
    with RunningServer(tmp_path, *options) as running, RetrievalClient(running.address) as client:
        stop = threading.Event()

        def ask_all_the_while() -> set[str]:
            seen = set()
            while not stop.is_set():
                found = client.retrieve([first.ids[row] for row in HISTORY], 10)
                version = versions[found.version]
                assert found.item_ids == [version.ids[row] for row in version.best(HISTORY, 10)]
                seen.add(found.version)
            return seen

        (old,) = versions
        num_lines = running.num_lines
        new = second.publish(tmp_path)
        versions[new] = second
        running.wait_for(f"worker 1: serving {new}", after=num_lines)
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask_all_the_while)
            num_lines = running.num_lines
            rollback(tmp_path, old)
            running.wait_for(f"worker 1: serving {old}", after=num_lines)
            assert client.retrieve([first.ids[4]]).version == old
            stop.set()
            assert asking.result(DEADLINE_S) <= {old, new}
