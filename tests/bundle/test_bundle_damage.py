"""A damaged version is refused with an error that names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.bundle.layout import ENCODER, GOLDEN, INDEX, MANIFEST, VECTORS
from re4.bundle.manifest import MAX_MANIFEST_BYTES, checksum_of, parse_manifest
from re4.bundle.verify import read_manifest, verify_version
from re4.common.errors import BundleDamagedError, BundleError, BundleMismatchError

FILES = [ENCODER, INDEX, VECTORS, GOLDEN, "popular.npy", "item_ids.keys.npy", "item_ids.rows.npy"]
FILES += ["item_ids.utf8", "item_ids.offsets.npy"]


def edit(version: Path, change: Callable[[dict[str, Any]], None], *, keep_checksum: bool = False) -> None:
    """Change the manifest; by default without a checksum, as older versions have it."""
    manifest = json.loads((version / MANIFEST).read_text())
    if not keep_checksum:
        del manifest["checksum"]
    change(manifest)
    (version / MANIFEST).write_text(json.dumps(manifest))


def entry_of(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in manifest["files"] if entry["name"] == name)


@pytest.fixture(autouse=True)
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification never parses an array, for any damage."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("an array was parsed before it was verified")

    monkeypatch.setattr(np, "load", refuse)


def test_an_intact_version_verifies(version: Path) -> None:
    assert {entry.name for entry in verify_version(version).files} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_truncated(version: Path, name: str) -> None:
    os.truncate(version / name, (version / name).stat().st_size - 1)
    with pytest.raises(BundleDamagedError, match=rf"{name}: \d+ bytes, the manifest says"):
        verify_version(version)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 1.0])
def test_one_bit_flipped(version: Path, name: str, where: float) -> None:
    content = bytearray((version / name).read_bytes())
    content[round(where * (len(content) - 1))] ^= 0b100
    (version / name).write_bytes(content)
    with pytest.raises(BundleDamagedError, match=rf"{name}: SHA-256"):
        verify_version(version)


@pytest.mark.parametrize("name", FILES)
def test_missing(version: Path, name: str) -> None:
    (version / name).unlink()
    with pytest.raises(BundleDamagedError, match=rf"{name}: missing"):
        verify_version(version)


@pytest.mark.parametrize("name", ["more.bin", ".hidden", "items.faiss.bak"])
def test_extra_file(version: Path, name: str) -> None:
    (version / name).touch()
    with pytest.raises(BundleDamagedError, match=rf"{name}: not part of the version"):
        verify_version(version)


def test_extra_folder(version: Path) -> None:
    (version / "folder").mkdir()
    with pytest.raises(BundleDamagedError, match="folder: not part of the version"):
        verify_version(version)


@pytest.mark.parametrize("name", [ENCODER, INDEX])
def test_file_of_another_version(publish: Callable[[str], Path], name: str) -> None:
    one, two = publish("one"), publish("two")
    shutil.copyfile(one / name, two / name)
    with pytest.raises(BundleDamagedError, match=rf"{name}: SHA-256"):
        verify_version(two)


def test_two_files_swapped(version: Path) -> None:
    (version / ENCODER).rename(version / "third")
    (version / INDEX).rename(version / ENCODER)
    (version / "third").rename(version / INDEX)
    with pytest.raises(BundleDamagedError, match=ENCODER):
        verify_version(version)


def test_manifest_of_another_version(publish: Callable[[str], Path]) -> None:
    one, two = publish("one"), publish("two")
    shutil.copyfile(one / MANIFEST, two / MANIFEST)
    with pytest.raises(BundleDamagedError, match=f"{MANIFEST}: is of version {one.name}"):
        verify_version(two)


@pytest.mark.parametrize("name", [VECTORS, MANIFEST])
def test_link_in_place_of_a_file(version: Path, name: str, tmp_path: Path) -> None:
    (version / name).rename(tmp_path / "moved")
    (version / name).symlink_to(tmp_path / "moved")
    with pytest.raises(BundleDamagedError, match=rf"{name}: not a regular file"):
        verify_version(version)


@pytest.mark.parametrize("name", [VECTORS, MANIFEST])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipe_or_folder_in_place_of_a_file(version: Path, name: str, make: Callable[[Path], None]) -> None:
    (version / name).unlink()
    make(version / name)
    with pytest.raises(BundleDamagedError, match=rf"{name}: not a regular file"):
        verify_version(version)


def test_link_in_place_of_the_version(version: Path) -> None:
    link = version.with_name("20260101T000000Z-00000000")
    link.symlink_to(version)
    with pytest.raises(BundleError, match="not a folder"):
        verify_version(link)


@pytest.mark.parametrize("name", ["notaversion", "20260101T000000Z-00000000 ", "20260101T000000Z"])
def test_folder_that_is_not_named_like_a_version(version: Path, name: str) -> None:
    with pytest.raises(BundleError, match="not named like a version"):
        verify_version(version.rename(version.with_name(name)))


def test_version_under_another_name(version: Path) -> None:
    other = version.rename(version.with_name("20260101T000000Z-00000000"))
    with pytest.raises(BundleDamagedError, match=f"is of version {version.name}"):
        verify_version(other)


def test_missing_version(bundles: Path) -> None:
    bundles.mkdir()
    with pytest.raises(BundleError, match="not a folder that can be read"):
        verify_version(bundles / "20260101T000000Z-00000000")


def test_missing_manifest(version: Path) -> None:
    (version / MANIFEST).unlink()
    with pytest.raises(BundleDamagedError, match=rf"{MANIFEST}: .*No such file"):
        verify_version(version)


def test_encoder_of_one_run_with_the_items_of_another(version: Path) -> None:
    edit(version, lambda manifest: manifest["model"].update(space="6" * 64))
    with pytest.raises(BundleMismatchError, match=r"666666666666….*555555555555….*export that run again"):
        verify_version(version)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["model"].update(surprise=1), r"model\.surprise"),
        (lambda m: m["files"][0].update(mode="x"), r"files\.0\.mode"),
        (lambda m: m.pop("lineage"), "lineage"),
        (lambda m: m["items"].update(num_items="3"), r"items\.num_items"),
        (lambda m: m["items"].update(num_items=0), r"items\.num_items"),
        (lambda m: m["items"].update(num_items=3.0), r"items\.num_items"),
        (lambda m: m["items"].update(id_kind="uuid"), r"items\.id_kind"),
        (lambda m: m["files"][0].update(name="../../elsewhere"), r"files\.0\.name"),
        (lambda m: m["files"][0].update(name="/absolute"), r"files\.0\.name"),
        (lambda m: m["files"][0].update(name="name\n"), r"files\.0\.name"),
        (lambda m: m["files"][0].update(sha256="0" * 63), r"files\.0\.sha256"),
        (lambda m: m["files"][0].update(num_bytes=-1), r"files\.0\.num_bytes"),
        (lambda m: m.update(version="../" + m["version"]), "version"),
        (lambda m: m.update(created_at="yesterday"), "created_at"),
        (lambda m: m["files"].append(m["files"][0]), "listed twice"),
        (lambda m: m["files"].append({**m["files"][0], "name": MANIFEST}), "listed twice, or"),
        (lambda m: m["files"].remove(entry_of(m, INDEX)), rf"{INDEX}: not listed in the manifest"),
        (lambda m: m["items"].update(id_kind="int"), r"item_ids\.values\.npy: not listed"),
        (lambda m: m.update(version="20260101T000000Z-00000000"), "is of version 20260101T000000Z"),
        (lambda m: entry_of(m, INDEX).update(num_bytes=7), rf"{INDEX}: \d+ bytes, the manifest says 7"),
        (lambda m: entry_of(m, INDEX).update(sha256="0" * 64), rf"{INDEX}: SHA-256"),
    ],
)
def test_edited_manifest(version: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    edit(version, change)
    with pytest.raises(BundleDamagedError, match=message):
        verify_version(version)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["model"].update(max_history_length=3),
        lambda m: m["index"].update(search_parameters={"nprobe": 1}),
        lambda m: m["evaluation"]["test"].update({"recall@50": 0.6}),
        lambda m: m.update(created_at="2026-01-31T12:00:00Z"),
        lambda m: m.update(checksum="0" * 64),
    ],
)
def test_a_change_that_nothing_else_would_show(
    version: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    edit(version, change, keep_checksum=True)
    with pytest.raises(BundleDamagedError, match=r"manifest\.json: something in it was changed"):
        verify_version(version)


def test_a_manifest_may_be_laid_out_anew_and_needs_no_checksum(version: Path) -> None:
    before = read_manifest(version)
    edit(version, lambda manifest: None, keep_checksum=True)
    assert verify_version(version) == before
    edit(version, lambda manifest: None)
    assert verify_version(version).checksum is None


def test_a_manifest_from_before_a_field_with_a_default_is_whole(version: Path) -> None:
    def as_written_then(manifest: dict[str, Any]) -> None:
        del manifest["index"]["frontier"]
        manifest["checksum"] = checksum_of(manifest)

    edit(version, as_written_then, keep_checksum=True)
    assert verify_version(version).index.frontier == ()


def test_manifest_of_another_schema(version: Path) -> None:
    edit(version, lambda manifest: manifest.update(schema_version=2, new_section={}))
    with pytest.raises(BundleError, match=r"schema_version is 2, this code reads 1\. Export") as caught:
        verify_version(version)
    assert not isinstance(caught.value, BundleDamagedError), "it is whole, only of another age"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": true}', b"[" * 100_000]
)
def test_manifest_that_is_not_one(version: Path, content: bytes) -> None:
    (version / MANIFEST).write_bytes(content)
    with pytest.raises(BundleDamagedError, match=MANIFEST):
        verify_version(version)


def test_huge_manifest_is_refused_unread(version: Path) -> None:
    os.truncate(version / MANIFEST, 1 << 40)
    with pytest.raises(BundleDamagedError, match=f"larger than the {MAX_MANIFEST_BYTES} bytes"):
        read_manifest(version)


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"1e999"])
def test_numbers_that_are_none(version: Path, value: bytes) -> None:
    content = (version / MANIFEST).read_bytes().replace(b'"recall@50": 0.5', b'"recall@50": ' + value)
    with pytest.raises(BundleDamagedError, match=r"evaluation: .*not JSON compliant"):
        parse_manifest(content, where="manifest")


@given(st.binary(max_size=300))
def test_any_bytes_give_an_error_of_ours(content: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(content, where="manifest")
