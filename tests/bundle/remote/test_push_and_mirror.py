"""Versions in object storage, by a real S3 protocol: pushed, followed, cut off, killed, and raced for."""

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from remote_storage import cutting_proxy, make_bucket, s3_server
from running_server import RE4, RunningServer, wait_until
from small_bundles import SmallVersion
from typer.testing import CliRunner

from re4 import RetrievalClient, ServerError
from re4.bundle.hidden_ids import change_hidden, read_hidden
from re4.bundle.layout import CURRENT, MANIFEST, VECTORS
from re4.bundle.live_items.compaction import compact
from re4.bundle.live_items.reader import LiveItemsReader
from re4.bundle.live_items.records import Removal, Upsert
from re4.bundle.live_items.writer import append_changes
from re4.bundle.manifest import CollectionInfo
from re4.bundle.publishing.canary import Canary, read_canary
from re4.bundle.publishing.current import read_current
from re4.bundle.publishing.rollback import roll_back
from re4.bundle.publishing.version_lease import VersionLease
from re4.bundle.publishing.versions import version_names
from re4.bundle.remote.address import cache_folder
from re4.bundle.remote.mirror import Mirror
from re4.bundle.remote.object_store import ObjectStore
from re4.bundle.remote.push import follow_and_push, push, stored_versions
from re4.bundle.remote.working_copy import bundle_directory
from re4.bundle.verify import read_manifest, verify_version
from re4.cli import build_app
from re4.common.errors import (
    BundleBusyError,
    BundleDamagedError,
    BundleError,
    BundleReadOnlyError,
    BundleUnavailableError,
    UsageError,
)

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
    assert version_names(copy) == [second, third]
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


def test_a_mirror_leaves_out_the_item_vectors_that_milvus_has(url: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    collection = CollectionInfo(address="milvus://127.0.0.1:1", name="c", index_type="FLAT")
    for parts in (SmallVersion(), SmallVersion(seed=1, index_kind="milvus-flat", collection=collection)):
        parts.publish(source)
        push(source, ObjectStore(url))
        Mirror(ObjectStore(url), copy, maps_vectors=False).update()
    first, second = version_names(copy)
    assert (copy / first / VECTORS).exists()
    assert not (copy / second / VECTORS).exists()
    verify_version(copy / second, maps_vectors=False)
    with pytest.raises(BundleDamagedError, match=f"{VECTORS}: missing"):
        verify_version(copy / second)
    Mirror(ObjectStore(url), copy).update()  # the setting was changed
    verify_version(copy / second)


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


def command(*words: str) -> str:
    done = CliRunner().invoke(build_app(list(words)), list(words))
    assert done.exit_code == 0, done.output
    return done.output


def test_commands_take_an_address(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RE4_BUNDLES_CACHE", str(tmp_path / "cache"))
    source, copy, store = tmp_path / "source", tmp_path / "copy", ObjectStore(url)
    names = []
    for seed in range(3):
        names.append(SmallVersion(seed=seed).publish(source))
        push(source, store)
    mirror = Mirror(store, copy)
    command("items", "hide", "item-7-é", "--bundles", url)
    command("items", "remove", "item-3-é", "--bundles", url)
    (tmp_path / "new.jsonl").write_text('{"id": "new-1"}\n')
    command("items", "add", str(tmp_path / "new.jsonl"), "--bundles", url)
    downloaded = {path.name for path in (cache_folder(url, "work-1") / names[2]).iterdir()}
    assert MANIFEST in downloaded
    assert {name.partition(".")[0] for name in downloaded - {MANIFEST}} == {"item_ids"}
    assert mirror.update() == names[2]
    assert read_hidden(copy).ids == ("item-7-é",)
    assert LiveItemsReader(copy).read().sequence == 2

    assert [name in command("versions", url) for name in names] == [True] * 3
    command("rollback", url)
    assert mirror.update() == names[1]
    command("canary", url, names[2], "--share", "10%")
    mirror.update()
    assert read_canary(copy) == Canary(version=names[2], share=0.1)
    verify_version(copy / names[2])
    command("canary", url, "--promote")
    assert mirror.update() == names[2]
    assert read_canary(copy) is None
    with bundle_directory(Path(url)) as folder:
        shutil.rmtree(folder / names[0])
    assert list(stored_versions(store)) == sorted(names[1:])
    with bundle_directory(Path(url)) as folder:
        newest = SmallVersion(seed=7).publish(folder)
    assert mirror.update() == newest
    verify_version(copy / newest)


def test_a_command_that_comes_second_or_fails_changes_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RE4_BUNDLES_CACHE", str(tmp_path / "cache"))
    source, copy, store = tmp_path / "source", tmp_path / "copy", ObjectStore(url)
    first = SmallVersion().publish(source)
    append_changes(source, [Upsert("new-0")])
    push(source, store)
    mirror = Mirror(store, copy)

    def sequences() -> list[int]:
        mirror.update()
        return [record.sequence for record in LiveItemsReader(copy).read().records]

    with (  # noqa: PT012
        pytest.raises(BundleBusyError, match="another publisher"),
        bundle_directory(Path(url)) as slow,
    ):
        append_changes(slow, [Upsert("lost-1"), Upsert("lost-2")])
        with bundle_directory(Path(url)) as fast:
            assert fast != slow
            append_changes(fast, [Upsert("kept-1")])
    with pytest.raises(UsageError), bundle_directory(Path(url)) as failing:  # noqa: PT012
        append_changes(failing, [Upsert("lost-3")])
        SmallVersion(seed=3).publish(failing)
        raise UsageError("a wrong option")
    assert sequences() == [1, 2]
    with bundle_directory(Path(url)) as third:
        assert read_current(third) == first
        append_changes(third, [Upsert("kept-2")])
    assert sequences() == [1, 2, 3]
    assert [record.change.id for record in LiveItemsReader(copy).read().records] == [
        "new-0",
        "kept-1",
        "kept-2",
    ]

    with bundle_directory(Path(url)) as rebuilding:  # its version counts, though items were added meanwhile
        second = SmallVersion(seed=4).publish(rebuilding)
        compact(rebuilding)
        with bundle_directory(Path(url)) as fast:
            append_changes(fast, [Upsert("kept-3")])
    assert sequences() == [1, 2, 3, 4]
    assert read_current(copy) == second


def test_a_mirror_keeps_to_its_bytes_and_keeps_what_may_be_needed(url: str, tmp_path: Path) -> None:
    source, copy, store = tmp_path / "source", tmp_path / "copy", ObjectStore(url)
    names, sizes = [], []
    for seed in range(5):
        names.append(SmallVersion(seed=seed, num_items=400 + seed).publish(source))
        sizes.append(sum(entry.num_bytes for entry in read_manifest(source / names[-1]).files))
    mirror = Mirror(store, copy, max_bytes=int(3.5 * max(sizes)))
    lease = None
    for place, name in enumerate(names):
        roll_back(source, name)
        push(source, store)
        assert mirror.update() == name
        if place == 1:
            lease = VersionLease(copy / name)
            mirror = Mirror(store, copy, max_bytes=int(4.5 * max(sizes)))
        assert set(names[max(0, place - 1) : place + 1]) <= set(version_names(copy))
        files = {path.stat().st_ino: path.stat().st_size for path in copy.rglob("*") if path.is_file()}
        assert sum(files.values()) <= 4.5 * max(sizes)
    assert names[0] not in version_names(copy)
    assert names[1] in version_names(copy)  # in use
    assert lease is not None
    lease.release()
    with pytest.raises(BundleUnavailableError, match=r"are allowed. Allow more: --bundles-cache-size"):
        Mirror(store, tmp_path / "small", max_bytes=max(sizes) // 2).update()
    roll_back(source, names[0])
    push(source, store)
    assert mirror.update() == names[0]


def test_a_followed_directory_is_pushed_when_it_changes(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy, store = tmp_path / "source", tmp_path / "copy", ObjectStore(url)
    SmallVersion().publish(source)
    mirror, sequences = Mirror(store, copy), []

    def between(_: float) -> None:
        mirror.update()
        sequences.append(LiveItemsReader(copy).read().sequence)
        if len(sequences) == 4:
            raise KeyboardInterrupt
        if len(sequences) < 3:
            append_changes(source, [Upsert(f"new-{len(sequences)}")])

    monkeypatch.setattr("re4.bundle.remote.push.sleep", between)
    num_pushes = []
    monkeypatch.setattr(
        "re4.bundle.remote.push.push", lambda *words, **options: num_pushes.append(push(*words, **options))
    )
    with pytest.raises(KeyboardInterrupt):
        follow_and_push(source, store, 1.0)
    assert sequences == [0, 1, 2, 2]
    assert len(num_pushes) == 3


def test_a_directory_that_follows_is_changed_by_its_mirror_alone(url: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    SmallVersion().publish(source)
    push(source, ObjectStore(url))
    version = Mirror(ObjectStore(url), copy).update()
    changes: list[Callable[[], Any]] = [
        lambda: append_changes(copy, [Upsert("new-1")]),
        lambda: change_hidden(copy, hide=["item-1-é"], kind="string"),
        lambda: roll_back(copy, version),
        lambda: SmallVersion(seed=1).publish(copy),
        lambda: compact(copy),
    ]
    for change in changes:
        with pytest.raises(BundleReadOnlyError, match=rf"is a mirror of {url}.*--bundles {url}"):
            change()
    with pytest.raises(UsageError, match="a bundle directory that others publish into"):
        Mirror(ObjectStore(url), source).update()
    with pytest.raises(UsageError, match=f"a mirror of {url}"):
        Mirror(ObjectStore(f"{url}/other"), copy).update()


def test_servers_follow_object_storage(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RE4_BUNDLES_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source"
    first = SmallVersion().publish(source)
    push(source, ObjectStore(url))
    options = ("--poll-interval-s", "0.1", "--histories", "none")
    with RunningServer(Path(url), *options) as server, RetrievalClient(server.address) as client:
        assert client.info()["version"] == first
        with pytest.raises(ServerError, match=rf"FAILED_PRECONDITION.*re4 items add FILE --bundles {url}"):
            client.remove_items(["item-1-é"])
        command("items", "remove", "item-1-é", "--bundles", url)
        command("items", "hide", "item-7-é", "--bundles", url)
        with bundle_directory(Path(url)) as folder:
            second = SmallVersion(seed=1).publish(folder)
        wait_until(lambda: (facts := client.info())["version"] == second and facts["num_hidden_items"] == 1)
        wait_until(lambda: "item-1-é" not in client.retrieve(["item-4-é"], 50).item_ids)
