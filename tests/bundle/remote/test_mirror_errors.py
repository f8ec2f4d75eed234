"""Nothing in the storage ends a mirror, or replaces a good list of hidden items by a damaged one."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_bundles import SmallVersion

from re4.bundle.hidden_ids import change_hidden, read_hidden
from re4.bundle.layout import HIDDEN
from re4.bundle.remote.mirror import Mirror
from re4.bundle.remote.object_store import StoredObject
from re4.common.errors import BundleDamagedError


class StoreInAFolder:
    url = "s3://bucket/shop"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> StoredObject | None:
        path = self.folder / name
        return StoredObject(path.read_bytes(), "") if path.exists() else None

    def chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        yield (self.folder / name).read_bytes()[start:stop]


def test_a_damaged_list_of_hidden_items_replaces_no_good_one(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    SmallVersion().publish(source)
    change_hidden(source, hide=["item-7-é"], kind="string")
    store: Any = StoreInAFolder(source)
    mirror = Mirror(store, copy)
    mirror.update()
    (source / HIDDEN).write_bytes(b"[" * 200_000)
    with pytest.raises(BundleDamagedError, match=HIDDEN):
        mirror.update()
    assert list(read_hidden(copy).ids) == ["item-7-é"]
    change_hidden_anew(source)
    mirror.update()
    assert list(read_hidden(copy).ids) == ["item-8-é"]


def change_hidden_anew(bundles: Path) -> None:
    (bundles / HIDDEN).unlink()
    change_hidden(bundles, hide=["item-8-é"], kind="string")


def test_no_error_ends_the_following(tmp_path: Path) -> None:
    stop = threading.Event()
    seen: list[str] = []

    class Failing:
        url = ""

        def get(self, _: str) -> None:
            raise RuntimeError("nobody expected this")

    def report(error: Exception) -> None:
        seen.append(str(error))
        if len(seen) == 2:
            stop.set()

    store: Any = Failing()
    Mirror(store, tmp_path / "copy").follow(0.001, stop, report)
    assert seen == ["nobody expected this"] * 2
