"""Publication: completely or not at all; publishers leave each other's work alone."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_versions import fill, publish_one, publish_staged

from re4.bundle.layout import CURRENT, INDEX, MANIFEST, POPULAR, STAGING_PREFIX, VECTORS
from re4.bundle.publishing import publish as publish_module
from re4.bundle.publishing.current import live_version, read_current
from re4.bundle.publishing.publish import StagedVersion, stage_version
from re4.bundle.verify import read_manifest, verify_version
from re4.common.errors import BundleDamagedError, BundleError, BundleMismatchError
from re4.common.file_lock import LOCK

HERE = Path(__file__).parent


def fail_after_filling(staged: StagedVersion) -> None:
    fill(staged.path, "new")
    raise ZeroDivisionError


def names(bundles: Path) -> set[str]:
    return {path.name for path in bundles.iterdir()}


def test_a_published_version_is_live_and_verifies(bundles: Path) -> None:
    with stage_version(bundles) as staged:
        fill(staged.path, "one")
        name = publish_staged(staged)

    manifest = verify_version(live_version(bundles))
    assert manifest.version == name == read_current(bundles)
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", name)
    assert manifest.created_at.replace("-", "").replace(":", "").startswith(name[:15])
    assert manifest.evaluation == {"test": {"recall@50": 0.5}}
    assert manifest.lineage == {"run": "runs/one"}
    assert names(bundles) == {CURRENT, name}
    np.testing.assert_array_equal(np.load(live_version(bundles) / POPULAR), [2, 0, 1])


def test_the_next_version_takes_over_and_the_old_one_stays_whole(publish: Callable[[str], Path]) -> None:
    old = publish("old")
    new = publish("new")
    assert live_version(new.parent) == new
    assert verify_version(old).version == old.name


def test_versions_published_within_one_second_do_not_collide(bundles: Path) -> None:
    published = [publish_one(bundles, content) for content in ["same"] * 6 + ["other"] * 6]
    assert len(set(published)) == 12
    assert all(verify_version(path).version == path.name for path in published)
    assert live_version(bundles) == published[-1]


def test_a_taken_name_is_never_overwritten(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def same_twice(now: object, entries: object, attempt: int) -> str:
        return f"20260131T000000Z-{attempt // 2:08x}"

    monkeypatch.setattr(publish_module, "_version_name", same_twice)
    first, second = publish_one(bundles, "one"), publish_one(bundles, "two")
    assert [first.name[-1], second.name[-1]] == ["0", "1"]
    assert (first / INDEX).read_bytes() == b"index one" * 100
    assert verify_version(second).version == second.name


def test_a_directory_that_does_not_exist_is_created(tmp_path: Path) -> None:
    path = publish_one(tmp_path / "a" / "b")
    assert live_version(tmp_path / "a" / "b") == path


def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"file/bundles: cannot publish here"):
        publish_one(tmp_path / "file" / "bundles")


def test_leaving_without_publishing_leaves_nothing(bundles: Path) -> None:
    with stage_version(bundles) as staged:
        fill(staged.path, "one")
    assert names(bundles) == set()


def test_an_error_while_filling_leaves_the_old_version(publish: Callable[[str], Path]) -> None:
    old = publish("old")
    with pytest.raises(ZeroDivisionError), stage_version(old.parent) as staged:
        fail_after_filling(staged)
    assert names(old.parent) == {CURRENT, old.name}
    assert live_version(old.parent) == old


def test_a_full_disk_leaves_the_old_version(
    publish: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = publish("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"cannot publish here.*No space left"):
        publish("new")
    assert names(old.parent) == {CURRENT, old.name}
    assert verify_version(live_version(old.parent)).version == old.name


@pytest.mark.parametrize("missing", [VECTORS, INDEX, "item_ids.offsets.npy"])
def test_a_version_with_a_file_missing_is_not_published(bundles: Path, missing: str) -> None:
    with stage_version(bundles) as staged:
        fill(staged.path, "one")
        (staged.path / missing).unlink()
        with pytest.raises(BundleError, match=rf"without {missing}"):
            publish_staged(staged)
    assert names(bundles) == set()


def test_a_link_is_not_published(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"index")
    with stage_version(bundles) as staged:
        fill(staged.path, "one")
        (staged.path / INDEX).unlink()
        (staged.path / INDEX).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BundleDamagedError, match=INDEX):
            publish_staged(staged)


def test_a_hidden_file_is_not_published(bundles: Path) -> None:
    with stage_version(bundles) as staged:
        fill(staged.path, "one")
        (staged.path / ".hidden").touch()
        with pytest.raises(BundleError, match="plain names"):
            publish_staged(staged)


def test_an_encoder_of_another_run_is_not_published(publish: Callable[[str], Path]) -> None:
    old = publish("old")
    with stage_version(old.parent) as staged:
        fill(staged.path, "new")
        with pytest.raises(BundleMismatchError, match="one run"):
            publish_staged(staged, model_space="6" * 64)
    assert live_version(old.parent) == old


def test_what_a_reader_would_refuse_is_not_published(bundles: Path) -> None:
    with stage_version(bundles) as staged:
        fill(staged.path, "one")
        with pytest.raises(BundleError, match=r"recall@50.*finite"):
            publish_staged(staged, recall=float("nan"))


def test_a_version_is_published_once(bundles: Path) -> None:
    with stage_version(bundles) as staged:
        fill(staged.path, "one")
        publish_staged(staged)
        with pytest.raises(BundleError, match="already published"):
            publish_staged(staged)


def test_killed_at_any_line_current_names_a_complete_version(
    bundles: Path, lines_of_deaths: tuple[int, int]
) -> None:
    """See publish_and_die.py: it checks the directory after each death.

    Some hundred deaths with `--hardening long`, and every fourth of them otherwise.
    """
    first_line, step = lines_of_deaths
    run = subprocess.run(
        [sys.executable, HERE / "publish_and_die.py", bundles, str(first_line), str(step)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE.parents[2]}{os.pathsep}{HERE.parent}",
        },
        check=False,
    )
    assert run.returncode == 0, run.stderr
    counts = json.loads(run.stdout)
    assert counts["old"] * step > 100, "most deaths come before the swap"
    assert counts["new"] * step > 10, "some deaths come after it"


def test_everything_is_on_the_disk_before_it_gets_its_name(
    publish: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill cannot show this; the order of the calls does."""
    bundles = publish("old").parent
    steps: list[tuple[str, int]] = []
    real_fsync, real_rename, real_replace = os.fsync, Path.rename, Path.replace

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        steps.append(("sync", os.fstat(descriptor).st_ino))

    def rename(self: Path, target: Path) -> Path:
        steps.append(("rename", self.stat().st_ino))
        return real_rename(self, target)

    def replace(self: Path, target: Path) -> Path:
        steps.append(("replace", self.stat().st_ino))
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(Path, "replace", replace)
    new = publish("new")

    inode = {path.name: path.stat().st_ino for path in [*new.iterdir(), new, bundles, bundles / CURRENT]}
    files = {("sync", inode[path.name]) for path in new.iterdir()}
    renamed = steps.index(("rename", inode[new.name]))
    assert files < set(steps[:renamed])
    manifest = steps.index(("sync", inode[MANIFEST]))
    assert files - {("sync", inode[MANIFEST])} == set(steps[:manifest]), "the manifest comes last"
    assert steps[manifest:] == [
        ("sync", inode[MANIFEST]),
        ("sync", inode[new.name]),
        ("rename", inode[new.name]),
        ("sync", inode[bundles.name]),
        ("sync", inode[CURRENT]),
        ("replace", inode[CURRENT]),
        ("sync", inode[bundles.name]),
    ]


def test_a_live_publisher_keeps_its_files_and_a_dead_one_loses_them(bundles: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from re4.bundle.publishing.publish import stage_version; from sample_versions import fill\n"
        "with stage_version(Path(sys.argv[1])) as staged:\n"
        "    fill(staged.path, 'other'); print(staged.path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, bundles, HERE.parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        staged_path = Path(other.stdout.readline().strip())
        publish_one(bundles, "one")
        assert (staged_path / INDEX).exists(), "the other publisher lives"
        other.kill()
        other.wait()
    assert (staged_path / INDEX).exists(), "a dead publisher cannot clean up"
    publish_one(bundles, "two")
    assert not staged_path.parent.exists()


def test_two_publishers_in_one_process_do_not_disturb_each_other(bundles: Path) -> None:
    with stage_version(bundles) as first, stage_version(bundles) as second:
        fill(first.path, "first")
        fill(second.path, "second")
        later = publish_staged(second)
        assert read_current(bundles) == later
        last = publish_staged(first)
    assert names(bundles) == {CURRENT, later, last}
    assert read_current(bundles) == last
    assert read_manifest(bundles / later).version == later


def test_nothing_piles_up_where_an_open_file_keeps_a_name(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on network file systems: a lock that is removed while it is held goes only when it is closed."""
    unlink, close = os.unlink, os.close
    held: list[Path] = []

    def unlink_later(path: Path, **options: Any) -> None:
        if Path(path).name != LOCK:
            return unlink(path, **options)
        held.append(path.with_name(".nfs0001"))
        return path.rename(held[-1])

    def close_and_unlink(descriptor: int) -> None:
        is_held = held and os.fstat(descriptor).st_ino == held[-1].stat().st_ino
        close(descriptor)
        if is_held:
            unlink(held.pop())

    monkeypatch.setattr(os, "unlink", unlink_later)
    monkeypatch.setattr(os, "close", close_and_unlink)
    for _ in range(3):
        with stage_version(bundles):
            pass
        assert not held
        assert not names(bundles)


def test_an_empty_folder_that_a_publisher_left_goes_with_the_next_one(bundles: Path) -> None:
    left = bundles / f"{STAGING_PREFIX}0123456789abcdef"
    left.mkdir(parents=True)
    with stage_version(bundles):
        assert not left.exists()


def test_a_link_among_the_leftovers_is_left_alone(bundles: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious" / "version"
    precious.mkdir(parents=True)
    bundles.mkdir()
    (bundles / ".staging-0000").symlink_to(precious.parent)
    publish_one(bundles)
    assert precious.exists()
