"""Following a file: no error leaves the poller, each is reported once, and the read is retried."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from re4.common.errors import BundleError
from re4.serving.host.file_poller import FilePoller, file_mark, poll_forever, read_followed


class Followed:
    """A file, what was read of it, and what was reported, under a clock that the test moves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 0.0
        self.error: Exception | None = None
        self.read: list[str] = []
        self.failures: list[str] = []
        path.write_text("first")
        self.poller = FilePoller(
            lambda: file_mark(path), on_failure=self.failures.append, clock_s=lambda: self.now_s
        )

    def poll(self) -> None:
        if self.poller.is_due():
            with self.poller.attempt():
                if self.error is not None:
                    raise self.error
                self.read.append(self.path.read_text())


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path / "file")


def test_a_file_is_read_again_only_when_it_changed(followed: Followed) -> None:
    followed.poll()
    assert followed.read == []
    followed.path.write_text("second one")
    followed.poll()
    followed.poll()
    assert followed.read == ["second one"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BundleError("damaged"), "damaged"),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
        (RecursionError("secret"), "the read failed with RecursionError"),
        (ValueError("secret"), "the read failed with ValueError"),
        (MemoryError(), "the read failed with MemoryError"),
    ],
)
def test_any_error_is_reported_once_and_the_read_retried_by_itself(
    error: Exception, reason: str, followed: Followed
) -> None:
    followed.path.write_text("second one")
    followed.error = error
    for _ in range(100):
        followed.poll()
        followed.now_s += 1
    assert followed.failures == [reason]
    followed.error = None
    followed.now_s += 60
    followed.poll()
    assert followed.read == ["second one"]


def test_retries_are_spaced_and_a_changed_file_is_read_at_once(followed: Followed) -> None:
    followed.path.write_text("second one")
    followed.error = OSError("no")
    attempts = []
    for _ in range(1000):
        if followed.poller.is_due():
            attempts.append(followed.now_s)
        followed.poll()
        followed.now_s += 0.25
    assert attempts[:5] == [0, 0.25, 0.75, 1.75, 3.75]
    assert len(attempts) < 20
    assert not followed.poller.is_due()
    followed.path.write_text("the third")
    followed.error = None
    followed.poll()
    assert followed.read == ["the third"]


def test_a_change_during_the_read_is_seen(followed: Followed) -> None:
    followed.path.write_text("second one")
    with followed.poller.attempt():
        followed.path.write_text("the third")
    followed.poll()
    assert followed.read == ["the third"]


def test_a_followed_file_that_is_no_regular_file_or_too_large_is_refused(tmp_path: Path) -> None:
    pipe, large, link = tmp_path / "pipe", tmp_path / "large", tmp_path / "link"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate((1 << 24) + 1)
    for path, reason in (
        (pipe, "Not a regular file"),
        (tmp_path, "Not a regular file"),
        (large, "Larger than"),
    ):
        with pytest.raises(OSError, match=reason):
            read_followed(path)
    os.truncate(large, 3)
    link.symlink_to(large)  # as Kubernetes mounts secrets
    assert read_followed(link) == bytes(3)


def test_a_cancellation_that_a_poll_swallows_ends_the_polling() -> None:
    """As `asyncio.wait_for` does where its future is done at the same moment."""

    async def main() -> None:
        polls = asyncio.Event()

        async def poll() -> None:
            polls.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

        polling = asyncio.create_task(poll_forever(0, poll))
        await polls.wait()
        polling.cancel()
        await asyncio.wait({polling}, timeout=30)
        assert polling.cancelled()

    asyncio.run(main())
