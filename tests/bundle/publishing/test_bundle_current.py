"""`CURRENT` contains the name of a version beside it; anything else is refused."""

from pathlib import Path

import pytest

from re4.bundle.layout import CURRENT
from re4.bundle.publishing.current import live_version, read_current
from re4.common.errors import BundleDamagedError, BundleError


def test_the_live_version(version: Path) -> None:
    assert read_current(version.parent) == version.name
    assert live_version(version.parent) == version


def test_the_line_may_lack_its_end(version: Path) -> None:
    (version.parent / CURRENT).write_text(version.name)
    assert live_version(version.parent) == version


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"..\n",
        b"/etc\n",
        b"../20260131T000000Z-01234567\n",
        b"20260131T000000Z-01234567/..\n",
        b"20260131T000000Z-0123456\n",
        b"20260131T000000Z-0123456G\n",
        b"20260131T000000Z-01234567\n\n",
        b"20260131T000000Z-01234567\r\n",
        b"20260131T000000Z-01234567\0\n",
        "２0260131T000000Z-01234567\n".encode(),
        b"\xff" * 26,
    ],
)
def test_anything_but_a_name_is_refused(version: Path, content: bytes) -> None:
    (version.parent / CURRENT).write_bytes(content)
    with pytest.raises(BundleError, match=r"CURRENT: holds .*publish again"):
        live_version(version.parent)


def test_a_long_file_is_refused(version: Path) -> None:
    (version.parent / CURRENT).write_bytes(b"x" * 1000)
    with pytest.raises(BundleError, match="CURRENT: larger than"):
        read_current(version.parent)


def test_nothing_published_yet(bundles: Path) -> None:
    bundles.mkdir()
    with pytest.raises(BundleError, match=r"no version was published here yet.*re4 export"):
        read_current(bundles)


def test_no_such_directory(bundles: Path) -> None:
    with pytest.raises(BundleError, match="not a folder that can be read"):
        read_current(bundles)


def test_a_version_that_is_not_there(version: Path) -> None:
    (version.parent / CURRENT).write_text("20260131T000000Z-01234567\n")
    with pytest.raises(BundleDamagedError, match="20260131T000000Z-01234567, but there is no such folder"):
        live_version(version.parent)


def test_links_are_not_followed(version: Path, tmp_path: Path) -> None:
    current = version.parent / CURRENT
    current.rename(tmp_path / "elsewhere")
    current.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleDamagedError, match="CURRENT: not a regular file"):
        read_current(version.parent)

    current.unlink()
    (tmp_path / "elsewhere").rename(current)
    version.rename(tmp_path / "moved")
    version.symlink_to(tmp_path / "moved")
    with pytest.raises(BundleDamagedError, match="no such folder"):
        live_version(version.parent)
