"""Temporary folders end with their server, however it ends."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running_server import RunningServer

from re4.serving.host import temporary_folders
from re4.serving.host.temporary_folders import temporary_folder

PREFIX = "re4-test-"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@contextmanager
def folder_locked_exclusively(path: Path) -> Iterator[None]:
    """As systemd-tmpfiles locks a folder before it removes its content."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def test_a_folder_in_use_is_locked_and_one_that_was_left_is_removed(temporary: Path) -> None:
    left, linked = temporary / f"{PREFIX}left", temporary / "linked"
    for folder in (left, linked):
        folder.mkdir()
        (folder / "content").touch()
    (temporary / f"{PREFIX}link").symlink_to(linked)
    (temporary / f"{PREFIX}file").touch()
    with temporary_folder(PREFIX) as path:
        assert not left.exists()
        assert (linked / "content").exists()
        with pytest.raises(BlockingIOError), folder_locked_exclusively(path):
            pass
        with temporary_folder(PREFIX) as other:
            assert path.exists()
            assert path != other
    assert not path.exists()


def test_a_new_folder_that_another_start_takes_for_a_left_one_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []

    def mkdtemp(prefix: str, dir: Path | None) -> str:
        path = temporary / f"{prefix}{len(removed)}"
        path.mkdir()
        if len(removed) < 2:
            temporary_folders._remove_unlocked(path)
            removed.append(path)
        return str(path)

    monkeypatch.setattr(temporary_folders, "mkdtemp", mkdtemp)
    with temporary_folder(PREFIX) as path:
        assert path.name == f"{PREFIX}2"


def test_the_next_start_removes_the_folders_of_a_killed_server(temporary: Path, bundles: Path) -> None:
    def folders() -> set[Path]:
        return set(temporary.glob("re4-serve-*"))

    options = ("--metrics-address", "127.0.0.1:0")
    with RunningServer(bundles, *options) as killed:
        assert len(folders()) == 2
        killed.signal(signal.SIGKILL)
        killed.wait()
    left = folders()
    assert len(left) == 2
    with RunningServer(bundles, *options):
        assert len(folders()) == 2
        assert not folders() & left
        for folder in folders():
            with pytest.raises(BlockingIOError), folder_locked_exclusively(folder):
                pass
    assert not folders()


@pytest.mark.transports("native", "grpcio")
def test_killed_workers_leave_no_folder_to_a_running_server(
    temporary: Path, bundles: Path, transport: str
) -> None:
    with RunningServer(bundles) as server:
        num_folders = len([path for path in temporary.rglob("*") if path.is_dir()])
        for _ in range(2):
            (worker,) = server.workers()
            seen = server.num_lines
            os.kill(worker, signal.SIGKILL)
            server.wait_for(r"worker 1: serving", after=seen)
            assert len([path for path in temporary.rglob("*") if path.is_dir()]) == num_folders
    assert not list(temporary.iterdir())
