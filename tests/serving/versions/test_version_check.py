"""No wrong version passes its check, and none harms the process that asks for it."""

import asyncio
from pathlib import Path

import pytest
from damaged_versions import CHANGED_FILES, WRONG_PARTS, endless_loop, publish
from small_bundles import SmallVersion

from re4.common.errors import BundleDamagedError, BundleError
from re4.serving.settings import ServerSettings
from re4.serving.versions.version_check import check_version, load_and_try


def check(path: Path, **settings: float) -> None:
    asyncio.run(check_version(path, ServerSettings(max_batch_size=4, **settings)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bundles").mkdir()
    return tmp_path / "bundles"


@pytest.mark.parametrize("id_kind", ["string", "int"])
def test_a_sound_version_passes(id_kind: str, folder: Path) -> None:
    check(folder / SmallVersion(id_kind=id_kind).publish(folder))


@pytest.mark.parametrize("name", CHANGED_FILES)
def test_changed_files_are_refused_before_any_parser_is_loaded(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, text = CHANGED_FILES[name]
    version = publish(folder, SmallVersion(), damage)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with pytest.raises(BundleError) as refused:
        check(folder / version)
    assert text in str(refused.value)
    imported = {line.rpartition("|")[2].strip() for line in capfd.readouterr().err.splitlines()}
    assert "re4.bundle.verify" in imported
    assert not imported & {"faiss", "onnxruntime", "numpy"}


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_wrong_parts_are_refused(name: str, folder: Path) -> None:
    make, text = WRONG_PARTS[name]
    version = publish(folder, make())
    with pytest.raises(BundleError) as refused:
        load_and_try(folder / version, ServerSettings(max_batch_size=4))
    assert text in str(refused.value)


def test_an_encoder_that_never_answers_is_refused_in_time(folder: Path) -> None:
    version = SmallVersion()
    version.encoder = endless_loop(version)
    path = folder / publish(folder, version)
    with pytest.raises(BundleError, match="took longer than 2 seconds"):
        check(path, check_timeout_s=2)


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("kill -SEGV $$", "signal SIGSEGV"),
        ("exit 3", "exit code 3"),
        ("exit 0", "answered b''"),
        ("echo so far so good", "answered b'so far so good"),
    ],
)
def test_a_check_that_dies_is_a_refusal(
    ending: str, text: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "dying-python"
    dying.write_text(f"#!/bin/sh\n{ending}\n")
    dying.chmod(0o755)
    path = folder / SmallVersion().publish(folder)
    monkeypatch.setattr("re4.serving.versions.version_check.sys.executable", str(dying))
    with pytest.raises(BundleDamagedError, match=text):
        check(path)
