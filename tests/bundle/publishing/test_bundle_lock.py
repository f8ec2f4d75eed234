"""One rebuild at a time: messages name the owner, dead owners lose the lock, a lost lock is noticed."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from re4.bundle.publishing import directory_lock as locks
from re4.bundle.publishing.directory_lock import REBUILDING, STALE_AFTER_S, Owner, change_lock, rebuild_lock
from re4.common.errors import BundleBusyError, BundleError


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    return tmp_path


def content(bundles: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((bundles / REBUILDING).read_text())
    return found


def leave(bundles: Path, *, seconds_ago: float = 0, **changes: object) -> None:
    """Leave a lock as another process would have, that long ago."""
    (bundles / REBUILDING).unlink(missing_ok=True)
    with rebuild_lock(bundles, "re4 rebuild --of-another"):
        left = content(bundles)
    (bundles / REBUILDING).write_text(json.dumps({**left, **changes}))
    then = (bundles / REBUILDING).stat().st_mtime - seconds_ago
    os.utime(bundles / REBUILDING, (then, then))


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_lock_says_whose_it_is_and_goes_with_the_job(bundles: Path) -> None:
    with rebuild_lock(bundles, "re4 rebuild --run runs"):
        found = content(bundles)
        assert (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())
        assert found["command"] == "re4 rebuild --run runs"
        assert {path.name for path in bundles.iterdir()} == {REBUILDING}
    assert not list(bundles.iterdir())


def test_a_second_job_is_told_who_is_at_work(bundles: Path) -> None:
    with rebuild_lock(bundles, "re4 rebuild --run first"):
        with pytest.raises(BundleBusyError) as busy, rebuild_lock(bundles, "re4 rebuild --run second"):
            pass
        assert content(bundles)["command"] == "re4 rebuild --run first"
    for word in ("re4 rebuild --run first", str(os.getpid()), socket.gethostname(), "Nothing was done"):
        assert word in str(busy.value)
    assert busy.value.exit_code == 4


@pytest.mark.parametrize("since", ["yesterday", "2026-01-31T12:00:00", "", "9" * 5000])
def test_a_lock_of_an_impossible_time_is_reported_as_held(bundles: Path, since: str) -> None:
    leave(bundles, since=since)
    with pytest.raises(BundleBusyError, match="does not say by whom"), rebuild_lock(bundles, "re4 rebuild"):
        pass


@pytest.mark.parametrize("content", ["[" * 9_000, '{"pid": ' + "9" * 5_000 + "}", "\0" * (1 << 20), ""])
def test_a_lock_of_any_content_is_reported_as_held(bundles: Path, content: str) -> None:
    (bundles / REBUILDING).write_text(content)
    with pytest.raises(BundleBusyError, match="does not say by whom"), rebuild_lock(bundles, "re4 rebuild"):
        pass


def test_a_pipe_in_place_of_the_lock_blocks_nothing(bundles: Path) -> None:
    os.mkfifo(bundles / REBUILDING)
    with pytest.raises(BundleBusyError, match="does not say by whom"), rebuild_lock(bundles, "re4 rebuild"):
        pass
    os.utime(bundles / REBUILDING, (0, 0))
    with rebuild_lock(bundles, "re4 rebuild"):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(bundles: Path, tmp_path: Path) -> None:
    (bundles / REBUILDING).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="cannot be locked"), rebuild_lock(bundles, "re4 rebuild"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_job_and_a_roll_back_do_not_hinder_each_other(bundles: Path) -> None:
    with rebuild_lock(bundles, "re4 rebuild"), change_lock(bundles):
        pass
    with change_lock(bundles), rebuild_lock(bundles, "re4 rebuild"):
        pass


def test_the_lock_of_a_dead_process_is_broken(bundles: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pid = dead_process()
    leave(bundles, pid=pid)
    with rebuild_lock(bundles, "re4 rebuild"):
        assert content(bundles)["pid"] == os.getpid()
    assert f"process {pid}" in caplog.text
    assert not list(bundles.iterdir())


def test_a_later_process_of_the_same_id_does_not_count_as_the_owner(bundles: Path) -> None:
    leave(bundles, born="1")
    with rebuild_lock(bundles, "re4 rebuild"):
        assert content(bundles)["born"] != "1"


@pytest.mark.parametrize("elsewhere", [{"boot": "another machine"}, {"host": "web7", "boot": "x", "pid": 1}])
def test_an_owner_on_another_machine_counts_by_its_signs_of_life(
    bundles: Path, elsewhere: dict[str, object]
) -> None:
    leave(bundles, seconds_ago=STALE_AFTER_S - 60, **elsewhere)
    before = (bundles / REBUILDING).read_bytes()
    with (
        pytest.raises(BundleBusyError, match=str(elsewhere.get("host", socket.gethostname()))),
        rebuild_lock(bundles, "mine"),
    ):
        pass
    assert (bundles / REBUILDING).read_bytes() == before
    leave(bundles, seconds_ago=STALE_AFTER_S + 60, **elsewhere)
    with rebuild_lock(bundles, "mine"):
        assert content(bundles)["command"] == "mine"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_says_nothing_counts_by_its_age(bundles: Path, damage: str) -> None:
    (bundles / REBUILDING).write_text(damage)
    with pytest.raises(BundleBusyError, match="does not say by whom"), rebuild_lock(bundles, "mine"):
        pass
    then = (bundles / REBUILDING).stat().st_mtime - STALE_AFTER_S - 60
    os.utime(bundles / REBUILDING, (then, then))
    with rebuild_lock(bundles, "mine"):
        assert content(bundles)["command"] == "mine"


def test_a_lock_that_was_lost_is_noticed_before_anything_is_published(bundles: Path) -> None:
    with rebuild_lock(bundles, "slept for an hour") as job:
        job.check()
        leave_other = {**content(bundles), "token": "another's"}
        (bundles / REBUILDING).write_text(json.dumps(leave_other))
        with pytest.raises(BundleBusyError, match="took its place"):
            job.check()
    assert content(bundles)["token"] == "another's"


def test_a_lock_that_another_took_meanwhile_is_not_broken(bundles: Path) -> None:
    mine = bundles / "mine"
    mine.write_text("")
    with rebuild_lock(bundles, "the winner"):
        locks._break(bundles / REBUILDING, mine)
        assert content(bundles)["command"] == "the winner"
        assert {path.name for path in bundles.iterdir()} == {REBUILDING, "mine"}


def test_of_many_who_find_a_stale_lock_one_gets_it(bundles: Path) -> None:
    def compete(barrier: threading.Barrier, inside: list[str]) -> None:
        barrier.wait()
        try:
            with rebuild_lock(bundles, "re4 rebuild"):
                inside.append("in")
                barrier.wait()  # all have tried
                barrier.wait()
        except BundleBusyError:
            barrier.wait()
            barrier.wait()

    for _ in range(20):
        leave(bundles, pid=dead_process())
        barrier, inside = threading.Barrier(4, timeout=60), []
        threads = [threading.Thread(target=compete, args=(barrier, inside)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            barrier.wait()
        for thread in threads:
            thread.join()
        assert inside == ["in"]
        assert not list(bundles.iterdir())


def test_what_those_who_died_while_taking_it_left_is_removed(bundles: Path) -> None:
    dead = Owner(
        host=socket.gethostname(),
        boot=locks._boot(),
        pid=dead_process(),
        born="1",
        command="",
        since="2026-01-31T12:00:00+00:00",
        token="t",
    )
    for name in (f"{REBUILDING}.t", f"{REBUILDING}.breaking"):
        (bundles / name).write_text(json.dumps(vars(dead)))
    (bundles / f"{REBUILDING}.half").write_text('{"ho')
    with rebuild_lock(bundles, "mine"):
        assert {path.name for path in bundles.iterdir()} == {REBUILDING, f"{REBUILDING}.half"}


def test_signs_of_life_are_given(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beaten = threading.Event()
    utime = os.utime

    def beat(path: Path, *times: object) -> None:
        utime(path, *times)
        if threading.current_thread() is not threading.main_thread():
            beaten.set()

    monkeypatch.setattr(locks, "_HEARTBEAT_S", 0.001)
    monkeypatch.setattr(locks.os, "utime", beat)
    with rebuild_lock(bundles, "mine"):
        assert beaten.wait(30)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a folder"), rebuild_lock(tmp_path / "nowhere", "mine"):
        pass


def test_killed_while_it_holds_the_lock_the_next_one_goes_on(bundles: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from re4.bundle.publishing.directory_lock import rebuild_lock\n"
        "with rebuild_lock(Path(sys.argv[1]), 'killed'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code, str(bundles)], env=environment, check=False)
    assert done.returncode == -9
    assert content(bundles)["command"] == "killed"
    with rebuild_lock(bundles, "next"):
        pass
    assert not list(bundles.iterdir())
