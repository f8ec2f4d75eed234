"""List, roll-back and pruning: a version is verified before it goes live, and needed versions stay."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sample_versions import publish_one
from typer.testing import CliRunner

from re4.bundle import versions_cli as cli
from re4.bundle.layout import CURRENT, ENCODER, INDEX, MANIFEST, is_version_name
from re4.bundle.publishing.current import read_current
from re4.bundle.publishing.directory_lock import change_lock
from re4.bundle.publishing.retention import prunable, prune
from re4.bundle.publishing.rollback import roll_back
from re4.bundle.publishing.version_lease import VersionLease, is_served
from re4.bundle.publishing.versions import list_versions, version_names
from re4.cli import build_app
from re4.common.errors import BundleBusyError, BundleDamagedError, BundleError, UsageError


@pytest.fixture
def names(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Five versions, an hour apart, oldest first; the last is live."""
    return published_at(bundles, monkeypatch, [3600.0 * hour for hour in range(5)])


def published_at(bundles: Path, monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> list[str]:
    """Publish versions one after the other, with the clock at these seconds after noon."""
    left = iter(seconds)

    class Clock:
        @staticmethod
        def now(zone: Any) -> datetime:
            return datetime(2026, 1, 31, 12, tzinfo=UTC) + timedelta(seconds=next(left))

    monkeypatch.setattr("re4.bundle.publishing.publish.datetime", Clock)
    return [publish_one(bundles, f"version {number}").name for number in range(len(seconds))]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_list_is_newest_first_and_says_what_is_live(bundles: Path, names: list[str]) -> None:
    found = list_versions(bundles, verify=True)
    assert [facts.name for facts in found] == names[::-1]
    assert [facts.is_live for facts in found] == [True] + [False] * 4
    assert not any(facts.problem for facts in found)
    newest = found[0]
    assert (newest.model, newest.index, newest.num_items) == ("re4", "flat", 3)
    assert newest.created_at.startswith("2026-01-31T16:00:00")
    files = [path for path in (bundles / newest.name).iterdir() if path.name != MANIFEST]
    assert newest.num_bytes == sum(path.stat().st_size for path in files)


def test_damaged_versions_are_listed_as_such(bundles: Path, names: list[str]) -> None:
    flip_a_bit(bundles / names[0] / INDEX)
    (bundles / names[1] / MANIFEST).write_text("{")
    seen = {facts.name: facts.problem for facts in list_versions(bundles, verify=False)}
    assert [bool(seen[name]) for name in names] == [False, True, False, False, False]
    seen = {facts.name: facts.problem for facts in list_versions(bundles, verify=True)}
    assert [bool(seen[name]) for name in names] == [True, True, False, False, False]
    assert INDEX in seen[names[0]]


def test_the_list_needs_no_current(bundles: Path, names: list[str]) -> None:
    (bundles / CURRENT).unlink()
    assert not any(facts.is_live for facts in list_versions(bundles, verify=False))
    with pytest.raises(BundleError, match="not a folder"):
        list_versions(bundles / "nowhere", verify=False)


def test_only_real_folders_named_like_versions_count(bundles: Path, names: list[str]) -> None:
    (bundles / "20260131T235959Z-0123abcd").symlink_to(bundles / names[0])
    (bundles / "20260131T235959Z-0123abce").write_text("a file")
    (bundles / "notes").mkdir()
    assert version_names(bundles) == names


def test_rolling_back_goes_one_version_back_each_time(bundles: Path, names: list[str]) -> None:
    for expected in names[-2::-1]:
        assert roll_back(bundles) == expected == read_current(bundles)
    with pytest.raises(BundleError, match=f"no version before the live one, {names[0]}"):
        roll_back(bundles)
    assert read_current(bundles) == names[0]
    assert roll_back(bundles, names[4]) == read_current(bundles) == names[4]
    assert sorted(path.name for path in bundles.iterdir()) == sorted([*names, CURRENT])


def test_a_named_version_repairs_a_current_that_is_lost_or_wrong(bundles: Path, names: list[str]) -> None:
    for content in (None, "../../etc\n", f"{names[0]}x\n"):
        (bundles / CURRENT).unlink() if content is None else (bundles / CURRENT).write_text(content)
        with pytest.raises(BundleError, match=CURRENT):
            roll_back(bundles)
        roll_back(bundles, names[2])
        assert read_current(bundles) == names[2]


def test_the_live_version_can_be_announced_anew(bundles: Path, names: list[str]) -> None:
    before = (bundles / CURRENT).stat()
    roll_back(bundles, names[4])
    after = (bundles / CURRENT).stat()
    assert (after.st_ino, after.st_mtime_ns) != (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "damage", ["a flipped bit", "a missing file", "an extra file", "another one's manifest"]
)
def test_a_version_that_is_not_verified_does_not_go_live(
    damage: str, bundles: Path, names: list[str]
) -> None:
    target = bundles / names[3]
    if damage == "a flipped bit":
        flip_a_bit(target / ENCODER)
    elif damage == "a missing file":
        (target / INDEX).unlink()
    elif damage == "an extra file":
        (target / "extra").write_text("x")
    else:
        (target / MANIFEST).write_bytes((bundles / names[2] / MANIFEST).read_bytes())
    before = (bundles / CURRENT).stat().st_ino
    for version in (None, names[3]):
        with pytest.raises(BundleDamagedError, match=names[3]):
            roll_back(bundles, version)
    assert (bundles / CURRENT).stat().st_ino == before


@pytest.mark.parametrize("version", ["../elsewhere", "", "20260131T235959Z-0123abcd", ".", "CURRENT"])
def test_a_version_that_is_not_there_does_not_go_live(version: str, bundles: Path, names: list[str]) -> None:
    with pytest.raises(BundleError, match=f"no version .*there is {names[4]}, {names[3]}"):
        roll_back(bundles, version)
    assert read_current(bundles) == names[4]


def test_changes_wait_for_each_other(
    bundles: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held from the choice of a version until it is live or removed."""
    num_tries = 0

    def is_held(path: Path) -> Any:
        nonlocal num_tries
        num_tries += 1
        with pytest.raises(BundleBusyError, match=str(os.getpid())), change_lock(bundles):
            pass
        return verified(path)

    from re4.bundle.verify import verify_version as verified

    monkeypatch.setattr("re4.bundle.publishing.directory_lock._PATIENCE_S", 0)
    for module in ("re4.bundle.publishing.rollback", "re4.bundle.publishing.retention"):
        monkeypatch.setattr(f"{module}.verify_version", is_held)
    roll_back(bundles)
    prune(bundles, num_kept=0)
    assert num_tries == 2


def test_pruning_keeps_the_live_version_newer_ones_and_some_older_ones(
    bundles: Path, names: list[str]
) -> None:
    roll_back(bundles, names[3])
    assert prunable(bundles, num_kept=3) == []
    assert prunable(bundles, num_kept=2) == names[:1]
    assert prune(bundles, num_kept=2) == names[:1]
    assert prune(bundles, num_kept=0) == names[1:3]
    assert version_names(bundles) == names[3:]
    assert prune(bundles, num_kept=0) == []
    assert sorted(path.name for path in bundles.iterdir()) == sorted([*names[3:], CURRENT])


def test_a_version_that_is_served_is_not_pruned(bundles: Path, names: list[str]) -> None:
    first, second = VersionLease(bundles / names[0]), VersionLease(bundles / names[0])
    assert prunable(bundles, num_kept=0) == names[1:4]
    first.release()
    assert prune(bundles, num_kept=1) == names[1:3]
    second.release()
    second.release()  # once is enough
    assert prune(bundles, num_kept=1) == names[:1]


def test_what_cannot_be_held_is_not_held(bundles: Path, names: list[str]) -> None:
    VersionLease(bundles / "nowhere").release()
    assert not is_served(bundles / "nowhere")


def test_pruning_touches_nothing_that_is_not_a_version(
    bundles: Path, names: list[str], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (bundles / "20200131T235959Z-0123abcd").symlink_to(elsewhere)
    (bundles / ".staging-0123456789abcdef").mkdir()
    (bundles / "notes").mkdir()
    prune(bundles, num_kept=0)
    left = {path.name for path in bundles.iterdir() if not is_version_name(path.name)}
    assert left == {".staging-0123456789abcdef", "notes", CURRENT}
    assert (elsewhere / "precious").exists()


def test_a_version_published_less_than_a_second_before_the_live_one_stays(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publisher may be about to make it live."""
    names = published_at(bundles, monkeypatch, [0, 1.4, 1.6, 2.5])
    assert prune(bundles, num_kept=0) == names[:2]
    assert version_names(bundles) == names[2:]


@pytest.mark.parametrize(
    "seconds",
    [[number / 1000 for number in range(6)], [7200.0, 7200.5, 3600, 0, 7201.2, 9000]],
    ids=["one second", "a clock set back"],
)
def test_roll_back_list_and_pruning_agree_on_the_order_of_publication(
    seconds: list[float], bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = published_at(bundles, monkeypatch, seconds)
    assert version_names(bundles) == names
    assert [facts.name for facts in list_versions(bundles, verify=False)] == names[::-1]
    monkeypatch.setattr("re4.bundle.publishing.retention._SWAP", timedelta(0))
    assert prunable(bundles, num_kept=2) == names[:3]
    for expected in names[-2::-1]:
        assert roll_back(bundles) == expected


def test_a_live_version_that_is_gone_is_rolled_back_by_the_time_in_its_name(
    bundles: Path, names: list[str]
) -> None:
    shutil.rmtree(bundles / names[3])
    (bundles / CURRENT).write_text(f"{names[3]}\n")
    assert roll_back(bundles) == names[2]


@pytest.mark.parametrize("damage", ["the live version", "CURRENT"])
def test_nothing_is_pruned_while_the_live_version_is_in_doubt(
    damage: str, bundles: Path, names: list[str]
) -> None:
    if damage == "CURRENT":
        (bundles / CURRENT).write_text("nonsense\n")
    else:
        flip_a_bit(bundles / names[4] / INDEX)
    with pytest.raises(BundleError):
        prune(bundles, num_kept=0)
    assert version_names(bundles) == names


def test_killed_at_any_line_every_version_is_complete_and_current_names_one(
    bundles: Path, names: list[str], lines_of_deaths: tuple[int, int]
) -> None:
    """At each line with `--hardening long`, and at every fourth otherwise: see change_and_die.py."""
    first_line, step = lines_of_deaths
    script = Path(__file__).with_name("change_and_die.py")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, str(script), str(bundles), str(first_line), str(step)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    deaths = json.loads(done.stdout)
    assert deaths["rollback_deaths"] * step > 20
    assert deaths["prune_deaths"] * step > 20


def test_the_subcommands(bundles: Path, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def answer() -> dict[str, Any]:
        answered: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answered

    cli.versions(bundles, as_json=True)
    listed = answer()
    assert listed["live"] == names[4]
    assert [version["name"] for version in listed["versions"]] == names[::-1]
    cli.rollback(bundles, as_json=True)
    assert answer() == {"live": names[3]}
    cli.prune(bundles, keep=1, dry_run=True, as_json=True)
    assert answer() == {"would_remove": names[:2]}
    assert version_names(bundles) == names
    cli.prune(bundles, keep=1, as_json=True)
    assert answer() == {"removed": names[:2]}
    with pytest.raises(UsageError, match="--keep -1"):
        cli.prune(bundles, keep=-1)


def test_the_subcommands_without_json(
    bundles: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flip_a_bit(bundles / names[1] / INDEX)
    (bundles / CURRENT).unlink()
    with pytest.raises(BundleError, match=f"1 of 5 versions cannot be used: {names[1]}"):
        cli.versions(bundles, verify=True)
    said = capsys.readouterr()
    assert all(name in said.out for name in names)
    assert "damaged" in said.out
    assert INDEX in said.err
    assert f"re4 rollback {bundles} VERSION" in said.err
    cli.rollback(bundles, names[4])
    assert f"{names[4]} is live" in capsys.readouterr().err
    cli.prune(bundles, keep=3, dry_run=True)
    cli.prune(bundles, keep=3)
    cli.prune(bundles, keep=3)
    said = capsys.readouterr()
    assert f"{names[0]} would be removed" in said.err
    assert f"{names[0]} was removed" in said.err
    assert "nothing to remove" in said.err


def test_a_verification_that_finds_a_changed_file_ends_with_exit_code_1(
    bundles: Path, names: list[str]
) -> None:
    def run(*options: str) -> Result:
        words = ["versions", str(bundles), *options]
        return CliRunner().invoke(build_app(words), words)

    assert run("--verify").exit_code == 0
    flip_a_bit(bundles / names[4] / INDEX)
    assert run().exit_code == 0
    for options in (["--verify"], ["--verify", "--json"]):
        result = run(*options)
        assert isinstance(result.exception, BundleError)
        assert result.exception.exit_code == 1
        assert names[4] in result.output
