"""Versions in object storage, by a real S3 protocol: pushed, followed, cut off, killed, and raced for."""

import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from remote_storage import cutting_proxy, make_bucket, s3_server
from running_server import RE4, RunningServer
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.hidden_ids import change_hidden, read_hidden
from re4.bundle.layout import CURRENT, LIVE, MANIFEST
from re4.bundle.live_items.reader import LiveItemsReader
from re4.bundle.live_items.records import Removal, Upsert
from re4.bundle.live_items.writer import append_changes
from re4.bundle.publishing.current import read_current
from re4.bundle.publishing.rollback import roll_back
from re4.bundle.publishing.versions import version_names
from re4.bundle.remote.mirror import Mirror
from re4.bundle.remote.object_store import ObjectStore
from re4.bundle.remote.push import push
from re4.bundle.verify import verify_version
from re4.common.errors import BundleBusyError, BundleDamagedError, BundleError, UsageError

buckets = (f"bucket-{number}" for number in count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as address:
        yield address


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ENDPOINT": server,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = next(buckets)
    make_bucket(server, bucket)
    return f"s3://{bucket}/shop"


def test_a_mirror_has_what_was_pushed(url: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    first = SmallVersion().publish(source)
    change_hidden(source, hide=["item-7-é"], kind="string")
    assert push(source, ObjectStore(url), num_kept=1) == first
    mirror = Mirror(ObjectStore(url), copy)
    assert mirror.update() == first
    assert read_hidden(copy).ids == ("item-7-é",)
    verify_version(copy / first)
    assert mirror.update() == first

    second = SmallVersion(seed=1, num_items=70).publish(source)
    push(source, ObjectStore(url), num_kept=1)
    assert mirror.update() == second == read_current(copy)
    assert version_names(copy) == [first, second]
    third = SmallVersion(seed=2).publish(source)
    push(source, ObjectStore(url), num_kept=0)
    assert mirror.update() == third
    assert {second, third} <= set(version_names(copy))  # a version of the same second stays
    objects = {name.split("/")[-2] for name in ObjectStore(url).names("") if name.endswith(MANIFEST)}
    assert objects == {name for name in (first, second, third) if name[:16] >= third[:16]}

    roll_back(source, second)
    push(source, ObjectStore(url))
    assert mirror.update() == second
    assert (copy / CURRENT).read_text() == f"{second}\n"


def test_files_that_are_there_are_linked(url: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    first = SmallVersion().publish(source)
    push(source, ObjectStore(url))
    mirror = Mirror(ObjectStore(url), copy)
    mirror.update()
    second = SmallVersion(encoder=None, num_golden=7).publish(source)
    push(source, ObjectStore(url))
    mirror.update()
    assert (copy / first / "vectors.npy").stat().st_ino == (copy / second / "vectors.npy").stat().st_ino
    assert (copy / first / "golden.npz").stat().st_ino != (copy / second / "golden.npz").stat().st_ino


def test_two_publishers_cannot_both_win(url: str, tmp_path: Path) -> None:
    """The second one publishes after the first one has read CURRENT, and before it replaces it."""
    one, other = tmp_path / "one", tmp_path / "other"
    SmallVersion().publish(one)
    winner = SmallVersion(seed=1).publish(other)

    class Slow(ObjectStore):
        def put_if_unchanged(self, name: str, content: bytes, before: Any) -> bool:
            push(other, ObjectStore(url))
            return super().put_if_unchanged(name, content, before)

    for _ in range(2):  # where there is no CURRENT yet, and where there is one
        with pytest.raises(BundleBusyError, match="another publisher is at work"):
            push(one, Slow(url))
        assert Mirror(ObjectStore(url), tmp_path / "copy").update() == winner
        winner = SmallVersion(seed=2).publish(other)


def test_live_items_travel(url: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    SmallVersion().publish(source)
    mirror = Mirror(ObjectStore(url), copy)

    def change(*changes: Any) -> None:
        append_changes(source, list(changes))
        push(source, ObjectStore(url))
        mirror.update()
        assert [record.sequence for record in LiveItemsReader(copy).read().records] == [
            record.sequence for record in LiveItemsReader(source).read().records
        ]

    change(Upsert("new-1"))
    change(Removal("item-3-é"), Upsert("new-2"))
    (copy / LIVE).write_text("{}")
    change_hidden(source, hide=["item-1-é"], kind="string")
    append_changes(source, [Upsert("new-3")])
    push(source, ObjectStore(url))
    with pytest.raises(BundleError, match="live items were changed in this mirror"):
        mirror.update()
    (copy / LIVE).unlink()
    other = tmp_path / "other"
    SmallVersion().publish(other)
    with pytest.raises(BundleError, match="live items there are of another directory"):
        push(other, ObjectStore(url))


def test_cut_connections_are_bridged(
    url: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    version = SmallVersion(num_items=5000).publish(source)
    with cutting_proxy(server, 20_000) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT", proxy)
        push(source, ObjectStore(url))
        assert Mirror(ObjectStore(url), copy).update() == version
    verify_version(copy / version)


def test_a_half_published_and_a_damaged_version_are_never_seen(url: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    first = SmallVersion().publish(source)
    store = ObjectStore(url)
    push(source, store)
    mirror = Mirror(store, copy)
    mirror.update()
    second = SmallVersion(seed=1).publish(source)

    class Dying(ObjectStore):
        num_left = 0

        def put(self, name: str, content: Any) -> None:
            if self.num_left == 0:
                raise KeyboardInterrupt
            self.num_left -= 1
            super().put(name, content)

    for _ in range(3):
        dying = Dying(url)
        dying.num_left = 2
        with pytest.raises(KeyboardInterrupt):
            push(source, dying)
        assert mirror.update() == first
        assert version_names(copy) == [first]
    push(source, store)
    store.put(f"{second}/vectors.npy", b"\0" * (source / second / "vectors.npy").stat().st_size)
    with pytest.raises(BundleDamagedError, match=r"vectors.npy: its content is not that of the manifest"):
        mirror.update()
    assert read_current(copy) == first
    assert not list(copy.glob(".mirror-*"))
    store.put(f"{second}/vectors.npy", source / second / "vectors.npy")
    assert mirror.update() == second


def test_killed_mirrors_leave_nothing_half(url: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    version = SmallVersion(num_items=20_000).publish(source)
    pushed = subprocess.run([*RE4, "push", str(source), url], capture_output=True, text=True, check=False)
    assert pushed.returncode == 0, pushed.stderr
    words = [*RE4, "mirror", url, str(copy), "--follow", "--interval-s", "0.1"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as killed:
        while not list(copy.glob(".mirror-*/*/vectors.npy")) and not (copy / CURRENT).exists():
            assert killed.poll() is None
        killed.send_signal(signal.SIGKILL)
    if (copy / CURRENT).exists():
        verify_version(copy / read_current(copy))
    assert Mirror(ObjectStore(url), copy).update() == version
    assert not list(copy.glob(".mirror-*"))


def test_what_cannot_be_followed_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing was pushed there yet"):
        Mirror(ObjectStore(url), tmp_path / "copy").update()
    with pytest.raises(UsageError, match="no address of object storage"):
        ObjectStore("http://somewhere")
    ObjectStore(url).put(CURRENT, b"../../etc\n")
    with pytest.raises(BundleDamagedError, match="no version"):
        Mirror(ObjectStore(url), tmp_path / "copy").update()


def test_a_server_follows_object_storage(url: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    first = SmallVersion().publish(source)
    push(source, ObjectStore(url))
    options = ("--bundles-url", url, "--poll-interval-s", "0.1")
    with RunningServer(copy, *options) as server, RetrievalClient(server.address) as client:
        assert client.info()["version"] == first
        second = SmallVersion(seed=1).publish(source)
        change_hidden(source, hide=["item-7-é"], kind="string")
        push(source, ObjectStore(url))
        while (facts := client.info())["version"] != second or not facts["num_hidden_items"]:
            assert not facts["failure"]
