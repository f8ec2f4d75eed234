"""The canary of a bundle directory: started, shown, ended and promoted, or refused as a whole."""

import json
from pathlib import Path

import pytest
from sample_versions import fill, publish_one, publish_staged

from re4.bundle.layout import CANARY, INDEX
from re4.bundle.publishing.canary import Canary, end_canary, read_canary, start_canary
from re4.bundle.publishing.current import read_current
from re4.bundle.publishing.publish import stage_version
from re4.common.errors import BundleError, UsageError
from re4.serving.versions.canary_cli import canary


@pytest.fixture
def names(bundles: Path) -> tuple[str, str]:
    """The version before, and the live one."""
    return publish_one(bundles, "one").name, publish_one(bundles, "two").name


def test_a_canary_is_started_shown_and_promoted(
    bundles: Path, names: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before, live = names
    assert read_canary(bundles) is None
    canary(bundles, before, share="12.5%")
    assert read_canary(bundles) == Canary(version=before, share=0.125)
    canary(bundles, before, share="0.5", shadow=True)
    assert read_canary(bundles) == Canary(version=before, share=0.5, is_shadow=True)
    assert read_current(bundles) == live
    capsys.readouterr()
    canary(bundles, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "canary": {"version": before, "share": 0.5, "is_shadow": True}
    }
    canary(bundles, promote=True)
    assert read_canary(bundles) is None
    assert read_current(bundles) == before
    canary(bundles, live)
    canary(bundles, abort=True)
    assert read_current(bundles) == before
    canary(bundles)
    assert "there is no canary" in capsys.readouterr().err
    with pytest.raises(BundleError, match="there is no canary"):
        end_canary(bundles, is_promoted=True)


def test_what_cannot_be_a_canary_changes_nothing(bundles: Path, names: tuple[str, str]) -> None:
    before, live = names
    with pytest.raises(BundleError, match="is the live version"):
        canary(bundles, live)
    with pytest.raises(BundleError, match="no version 'none'"):
        canary(bundles, "none")
    for share in ("0", "101%", "-1%", "x", "nan"):
        with pytest.raises(UsageError, match="--share"):
            canary(bundles, before, share=share)
    with pytest.raises(UsageError, match="one of them"):
        canary(bundles, before, abort=True)
    start_canary(bundles, Canary(version=before, share=1.0))
    (bundles / before / INDEX).write_bytes(b"damaged")
    with pytest.raises(BundleError):
        canary(bundles, promote=True)
    assert read_current(bundles) == live
    assert read_canary(bundles) == Canary(version=before, share=1.0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 4000,
        b"[]",
        b"{}",
        b'{"schema_version": 1, "version": "../x", "share": 0.5, "is_shadow": false}',
        b'{"schema_version": 1, "version": "20260131T235959Z-0123abcd", "share": 1e400, "is_shadow": false}',
        b'{"schema_version": 1, "version": "20260131T235959Z-0123abcd", "share": "1", "is_shadow": false}',
        b'{"schema_version": 1, "version": "20260131T235959Z-0123abcd", "share": 0, "is_shadow": false}',
        b'{"schema_version": 1, "version": "20260131T235959Z-0123abcd", "share": 1, "is_shadow": 1}',
        b'{"schema_version": 1, "version": "20260131T235959Z-0123abcd", "share": 1, "more": 1}',
        b'{"schema_version": 2, "version": "20260131T235959Z-0123abcd", "share": 1, "is_shadow": false}',
        b"x" * 5000,
    ],
)
def test_a_damaged_file_names_no_canary(content: bytes, bundles: Path, names: tuple[str, str]) -> None:
    (bundles / CANARY).write_bytes(content)
    with pytest.raises(BundleError, match=CANARY):
        read_canary(bundles)
    start_canary(bundles, Canary(version=names[0], share=0.5))
    assert read_canary(bundles) is not None


def test_a_version_can_be_published_beside_the_live_one(bundles: Path, names: tuple[str, str]) -> None:
    with stage_version(bundles) as staged:
        fill(staged.path, "three")
        name = publish_staged(staged, is_live=False)
    assert read_current(bundles) == names[1]
    canary(bundles, name)
    assert read_canary(bundles) == Canary(version=name, share=0.05)
