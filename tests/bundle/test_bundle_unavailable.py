"""A condition of the system that may pass is no verdict on a file: each system call fails in its turn."""

import errno
import io
import mmap
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sample_versions import publish_one

from re4.bundle.array_files import map_text, open_array
from re4.bundle.golden import GoldenQueries
from re4.bundle.hidden_ids import HiddenIds, read_hidden, write_hidden
from re4.bundle.layout import GOLDEN, ID_TEXT, VECTORS
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.version_lease import VersionLease, is_served
from re4.bundle.publishing.versions import list_versions, version_names
from re4.bundle.verify import verify_version
from re4.common.errors import TRANSIENT_ERRNOS, BundleDamagedError, BundleError, BundleUnavailableError

MAY_PASS = [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM]


@pytest.fixture
def version(bundles: Path) -> Path:
    bundles.mkdir()
    write_hidden(bundles, HiddenIds(ids=("a",)))
    return publish_one(bundles)


class Fault:
    """A system call that fails the n-th time, once."""

    def __init__(self, real: Callable[..., Any], turn: int, number: int) -> None:
        self._real, self._turn, self._number = real, turn, number
        self.has_failed = False

    def __call__(self, *words: Any, **options: Any) -> Any:
        self._turn -= 1
        if self._turn == 0:
            self.has_failed = True
            raise OSError(self._number, os.strerror(self._number))
        return self._real(*words, **options)


def num_told_apart(
    monkeypatch: pytest.MonkeyPatch, module: Any, call: str, number: int, look: Callable[[], object]
) -> int:
    """Let the first call fail, then the second, …; every time it must be said. Return how many there are."""
    for turn in count(1):
        fault = Fault(getattr(module, call), turn, number)
        with monkeypatch.context() as patch:
            patch.setattr(module, call, fault)
            try:
                look()
            except BundleUnavailableError as error:
                assert "try again" in str(error)  # noqa: PT017
                continue
        assert not fault.has_failed
        return turn - 1
    raise AssertionError


@pytest.mark.parametrize("number", MAY_PASS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "fstat", "listdir", "read", "readv"])
def test_verification_tells_it_apart_from_damage(
    version: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    assert num_told_apart(monkeypatch, os, call, number, lambda: verify_version(version)) >= 1
    verify_version(version)


@pytest.mark.parametrize("number", MAY_PASS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "fstat", "listdir", "read"])
@pytest.mark.parametrize("look", [read_hidden, live_version, version_names])
def test_hidden_items_current_and_the_order_of_versions(
    version: Path,
    monkeypatch: pytest.MonkeyPatch,
    look: Callable[[Path], object],
    call: str,
    number: int,
) -> None:
    before = look(version.parent)
    assert num_told_apart(monkeypatch, os, call, number, lambda: look(version.parent)) >= 1
    assert look(version.parent) == before


@pytest.mark.parametrize("number", MAY_PASS, ids=errno.errorcode.get)
@pytest.mark.parametrize("look", [live_version, version_names])
def test_the_folder_of_a_version(
    version: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object], number: int
) -> None:
    assert num_told_apart(monkeypatch, os, "stat", number, lambda: look(version.parent)) == 1


@pytest.mark.parametrize("number", MAY_PASS, ids=errno.errorcode.get)
@pytest.mark.parametrize("module_and_call", [(io, "open"), (mmap, "mmap")], ids=["open", "mmap"])
def test_arrays_texts_and_archives(
    version: Path, monkeypatch: pytest.MonkeyPatch, module_and_call: tuple[Any, str], number: int
) -> None:
    module, call = module_and_call
    looks: list[Callable[[], object]] = [
        lambda: open_array(version / VECTORS, "<f4", (3, 2)),
        lambda: map_text(version / ID_TEXT, 3),
    ]
    if call == "open":
        # NumPy opens files by the builtin, `Path.open` by the module: both are to fail.
        monkeypatch.setattr("builtins.open", lambda *words, **options: module.open(*words, **options))
        looks.append(lambda: GoldenQueries.read(version / GOLDEN))
    for look in looks:
        assert num_told_apart(monkeypatch, module, call, number, look) >= 1
        look()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENAMETOOLONG])
def test_other_errors_stay_a_verdict(version: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    assert number not in TRANSIENT_ERRNOS

    def refuse(*words: Any, **options: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(BundleError, match="not a folder that can be read") as caught:
            verify_version(version)
    assert not isinstance(caught.value, BundleUnavailableError)
    with monkeypatch.context() as patch:
        patch.setattr(io, "open", refuse)
        patch.setattr("builtins.open", refuse)
        with pytest.raises(BundleDamagedError):
            open_array(version / VECTORS, "<f4", (3, 2))


@pytest.mark.parametrize("number", MAY_PASS, ids=errno.errorcode.get)
def test_a_lease_that_cannot_be_looked_at_is_not_counted_as_none(
    version: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Pruning would remove what a server needs."""
    assert num_told_apart(monkeypatch, os, "open", number, lambda: is_served(version)) >= 1
    assert num_told_apart(monkeypatch, os, "open", number, lambda: VersionLease(version).release()) == 1
    assert not is_served(version)


def test_a_list_of_versions_reports_no_damage(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.readv

    def fail(*words: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "readv", fail)
    (facts,) = list_versions(version.parent, verify=True)
    assert "try again" in facts.problem
    monkeypatch.setattr(os, "readv", real)
    (facts,) = list_versions(version.parent, verify=True)
    assert not facts.problem
