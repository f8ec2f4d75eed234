"""Servers on hosts of their own: one is cut off and comes back; no call fails, and its versions follow."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from network_hosts import hosts
from remote_storage import make_bucket, s3_server
from running_server import RunningServer, wait_until
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.remote.object_store import ObjectStore
from re4.bundle.remote.push import push


def test_a_host_that_is_cut_off_fails_no_call_and_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        here, machines = stack.enter_context(hosts(2))
        endpoint = stack.enter_context(s3_server(tmp_path / "log", here))
        for name, value in {
            "AWS_ENDPOINT": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        make_bucket(endpoint, "models")
        url = "s3://models/shop"
        source = tmp_path / "source"
        first = SmallVersion().publish(source)
        push(source, ObjectStore(url))
        servers = []
        for place, machine in enumerate(machines):
            options = ("--address", f"{machine.address}:0", "--insecure", "--poll-interval-s", "0.1")
            cache = ("--bundles-cache", str(tmp_path / f"host-{place}" / "bundles"))
            with machine.starting():
                servers.append(RunningServer(Path(url), *options, *cache))
        one, other = (stack.enter_context(server) for server in servers)
        client = stack.enter_context(RetrievalClient(f"{one.address},{other.address}", timeout_s=30.0))
        alone, away = (stack.enter_context(RetrievalClient(each.address)) for each in (one, other))
        assert [each.info()["version"] for each in (alone, away)] == [first, first]

        def call(num_calls: int) -> list[int]:
            with ThreadPoolExecutor(4) as pool:
                found = pool.map(lambda _: client.retrieve(["item-1-é"], 10), range(num_calls))
                return [len(each.item_ids) for each in found]

        assert call(20) == [10] * 20
        with machines[1].cut_off():
            assert call(20) == [10] * 20
            second = SmallVersion(seed=1).publish(source)
            push(source, ObjectStore(url))
            wait_until(lambda: alone.info()["version"] == second)
            assert call(20) == [10] * 20
        wait_until(lambda: away.info()["version"] == second)
        assert call(20) == [10] * 20
