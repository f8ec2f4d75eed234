"""A worker that starts again does not serve files that were changed since their check."""

import os
import signal
from pathlib import Path

import pytest
from running_server import RunningServer
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.layout import VECTORS
from re4.common.errors import BundleError
from re4.serving.versions.changed_files import file_marks, require_unchanged


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return tmp_path / SmallVersion(seed=1).publish(tmp_path)


def flip_last_byte(path: Path) -> None:
    """Change a file in place, as no publication does."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def test_unchanged_files_are_not_read_again(version: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert require_unchanged(version, file_marks(version)).version == version.name
    assert not caplog.records


def test_touched_files_are_verified_again_and_changed_ones_refused(
    version: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checked = file_marks(version)
    for marks in ({}, checked):
        os.utime(version / VECTORS)
        assert require_unchanged(version, marks).version == version.name
    assert caplog.text.count("files were touched since the check") == 2
    flip_last_byte(version / VECTORS)
    with pytest.raises(BundleError, match="SHA-256"):
        require_unchanged(version, checked)
    assert file_marks(version / "absent") == {}


def test_a_restarted_worker_refuses_a_changed_version_and_takes_the_next_good_one(version: Path) -> None:
    with RunningServer(version.parent, "--poll-interval-s", "0.02") as running:
        flip_last_byte(version / VECTORS)
        (worker,) = running.workers()
        seen = running.num_lines
        os.kill(worker, signal.SIGKILL)
        running.wait_for("files were touched since the check", after=seen)
        running.wait_for(r"worker 1 does not start: .*SHA-256", after=seen)
        good = SmallVersion(seed=2).publish(version.parent)
        running.wait_for(f"worker 1: serving {good}", after=seen)
        with RetrievalClient(running.address) as client:
            assert client.retrieve(["item-1-é"], 5).version == good
