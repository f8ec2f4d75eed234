"""No wrong version passes its check, and none harms the process that starts it."""

import asyncio
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from damaged_versions import CHANGED_FILES, WRONG_PARTS, endless_loop, publish
from small_bundles import SmallVersion

from re4.common.errors import BundleDamagedError, BundleError, ServerError
from re4.serving.host.cgroups import available_memory_bytes
from re4.serving.settings import ServerSettings
from re4.serving.versions.version_check import check_version, load_and_try


def check(path: Path, **settings: float) -> None:
    asyncio.run(check_version(path, ServerSettings(max_batch_size=4, **settings)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bundles").mkdir()
    return tmp_path / "bundles"


Dying: TypeAlias = Callable[[str], Path]


@pytest.fixture
def dying(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dying:
    """Makes the check's process one that ends in a given way; the version to check."""

    def make(ending: str) -> Path:
        script = tmp_path / "dying-python"
        script.write_text(f"#!/bin/sh\n{ending}\n")
        script.chmod(0o755)
        monkeypatch.setattr("re4.serving.versions.version_check.sys.executable", str(script))
        return folder / SmallVersion().publish(folder)

    return make


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


def test_an_encoder_that_never_answers_is_stopped_in_time(folder: Path) -> None:
    version = SmallVersion()
    version.encoder = endless_loop(version)
    path = folder / publish(folder, version)
    with pytest.raises(ServerError, match="took longer than 2 seconds"):
        check(path, check_timeout_s=2)


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("echo; exit 3", "exit code 3"),
        ("exit 0", "answered b''"),
        ("echo so far so good", "answered b'so far so good"),
        ("echo 17", "answered b'17"),
    ],
)
def test_a_check_that_ends_without_a_result_is_a_refusal(ending: str, text: str, dying: Dying) -> None:
    with pytest.raises(BundleDamagedError, match=text):
        check(dying(ending))


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("exit 3", "exit code 3; the check is repeated"),
        ("kill -SEGV $$", "signal SIGSEGV"),
        ("kill -KILL $$", "signal SIGKILL"),
        ("kill -35 $$", "signal 35; the check is repeated"),
    ],
)
def test_a_check_that_is_killed_is_no_verdict_on_the_version(ending: str, text: str, dying: Dying) -> None:
    """A signal may be the memory's, or an operator's: ServerError, which is retried, not BundleError."""
    with pytest.raises(ServerError, match=text):
        check(dying(ending))


def verify_by(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the check's process run this code in place of the verification."""
    (folder / "sitecustomize.py").write_text(
        "import sys\nif 're4.serving.versions.version_check' in sys.orig_argv:\n"
        "    import resource\n    from re4.bundle import verify\n"
        "    from re4.common.errors import BundleError\n"
        f"    def run(path, **how):\n{textwrap.indent(code, ' ' * 8)}\n    verify.verify_version = run\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[3]}")


@pytest.mark.parametrize(
    "error", ["OSError(24, 'Too many open files')", "MemoryError()", "ImportError('failed to map segment')"]
)
def test_a_check_without_files_or_memory_is_no_verdict_on_the_version(
    error: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is in the context of the bundle's own error, as its readers raise it."""
    verify_by(
        f"try:\n    raise {error}\n"
        "except Exception:\n    raise BundleError('no way to look at it') from None\n",
        *(tmp_path, monkeypatch),
    )
    with pytest.raises(ServerError, match="no way to look at it"):
        check(folder / SmallVersion().publish(folder))


def test_the_check_may_not_use_all_free_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an archive that inflates to far more than its size would. The memory is reserved, not touched."""
    num_bytes = max(int(available_memory_bytes() * 0.9), 1 << 30)
    verify_by(
        f"import numpy\nnumpy.empty({num_bytes}, 'u1')\nraise BundleError('there was no limit')",
        tmp_path,
        monkeypatch,
    )
    path = folder / SmallVersion().publish(folder)
    with pytest.raises(ServerError, match="may use 80% of the memory that is free"):
        check(path)
    with pytest.raises(BundleError, match="there was no limit"):
        check(path, memory_check=False)


def test_the_check_has_limits_of_cpu_time_and_written_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "cpu_s, _ = resource.getrlimit(resource.RLIMIT_CPU)\n"
        "try:\n    open(path.parent / 'large', 'wb').write(bytes(1 << 26))\n"
        "except OSError as error:\n    raise BundleError(f'{cpu_s} s, {error.strerror}') from None\n"
    )
    verify_by(code, tmp_path, monkeypatch)
    with pytest.raises(BundleError, match="500 s, File too large"):
        check(folder / SmallVersion().publish(folder), check_timeout_s=100)
