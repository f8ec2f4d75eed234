"""Ends of a rebuild that does not succeed: stopped, or beside another one; and its report."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rebuild_samples import Shop
from running_server import RunningServer

from re4 import RetrievalClient
from re4.bundle.layout import CURRENT
from re4.bundle.publishing.directory_lock import rebuild_lock
from re4.bundle.verify import verify_version
from re4.common.errors import BundleBusyError, BundleUnavailableError, GateError
from re4.exporting.rebuild.cli import rebuild as subcommand
from re4.exporting.rebuild.report import RebuildReport

_WAITS = """
import sys, os
from re4.exporting.rebuild import job as rebuilding
run_gates = rebuilding.run_gates
def waiting(*words, **more):
    sys.stdout.write("at the gates\\n"); sys.stdout.flush()
    sys.stdin.readline()
    return run_gates(*words, **more)
rebuilding.run_gates = waiting
from re4.cli import main
main()
"""
"""The command, stopping before the gates until a line is written to it."""


def start(shop: Shop, *options: object) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITS, *shop.line(*options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at the gates\n"
    return process


def metrics(file: Path) -> dict[str, float]:
    families = text_string_to_metric_families(file.read_text())
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_leaves_nothing_but_its_report(shop: Shop, number: int, code: int) -> None:
    report = shop.folder / "report.json"
    process = start(shop, "--report", report)
    assert any(name.startswith(".staging-") for name in shop.files())
    assert ".rebuilding" in shop.files()
    process.send_signal(number)
    _, output = process.communicate(timeout=60)
    assert process.returncode == code, output
    # The finished stages of its index stay for the next one, who takes them up or removes them.
    assert {name for name in shop.files() if not name.startswith(".building-")} == {CURRENT, shop.first}
    reported = json.loads(report.read_text())
    assert (reported["outcome"], reported["exit_code"]) == ("interrupted", code)
    assert list(reported["stages_s"])[-1] == "gates"
    error, _ = shop.rebuild()
    assert error is None
    assert not [name for name in shop.files() if name.startswith(".")]


def test_killed_the_next_one_clears_up(shop: Shop) -> None:
    process = start(shop)
    process.kill()
    process.communicate(timeout=60)
    verify_version(shop.bundles / shop.first)
    assert (shop.bundles / CURRENT).read_text() == f"{shop.first}\n"
    error, report = shop.rebuild()
    assert error is None
    assert shop.files() == {CURRENT, shop.first, report["version"]}


def test_of_two_at_once_one_publishes_and_one_names_the_other(shop: Shop) -> None:
    first = start(shop)
    error, report = shop.rebuild()
    assert isinstance(error, BundleBusyError)
    assert (report["outcome"], report["exit_code"]) == ("busy", 4)
    assert f"process {first.pid} on" in report["error"]
    assert "rebuild --bundles" in report["error"]
    assert not report["gates"]
    _, output = first.communicate("\n", timeout=60)
    assert first.returncode == 0, output
    assert len([name for name in shop.files() if not name.startswith(".")]) == 3


def test_a_rebuild_does_not_hold_up_a_server_that_follows(shop: Shop) -> None:
    options = ("--poll-interval-s", "0.02")
    with RunningServer(shop.bundles, *options) as running, RetrievalClient(running.address) as client:
        num_lines = running.num_lines
        kept = shop.version.ids[:-30]
        error, report = shop.rebuild("--catalogue", shop.write_catalogue(kept))
        assert error is None
        running.wait_for(f"serving {report['version']}", after=num_lines)
        found = client.retrieve(kept[:3], 150)
        assert found.version == report["version"]
        assert set(found.item_ids) <= set(kept)


def test_the_metrics(shop: Shop) -> None:
    file = shop.folder / "metrics" / "re4_rebuild.prom"
    error, _ = shop.rebuild("--metrics-file", file)
    assert error is None
    good = metrics(file)
    assert (good["re4_rebuild_success"], good["re4_rebuild_exit_code"]) == (1, 0)
    assert good["re4_rebuild_items live"] == 200
    assert good["re4_rebuild_gate_passed recall"] == 1
    last = good["re4_rebuild_last_success_timestamp_seconds"]
    assert last == good["re4_rebuild_last_run_timestamp_seconds"] > 0

    error, _ = shop.rebuild("--metrics-file", file, "--min-items-ratio", 1.2)
    assert isinstance(error, GateError)
    bad = metrics(file)
    assert (bad["re4_rebuild_success"], bad["re4_rebuild_exit_code"]) == (0, 3)
    assert bad["re4_rebuild_gate_passed count"] == 0
    assert bad["re4_rebuild_gate_figure count"] == 1
    assert bad["re4_rebuild_last_success_timestamp_seconds"] == last
    assert bad["re4_rebuild_last_run_timestamp_seconds"] >= last
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_report_that_cannot_be_written_hides_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    monkeypatch.setattr("re4.exporting.rebuild.cli.print_line", reported.append)
    (shop.folder / "a file").write_text("")
    error, _ = shop.rebuild("--metrics-file", shop.folder / "a file" / "x.prom")
    assert error is None
    assert any("could not be written" in line for line in reported)


def test_errors_that_nobody_expected_are_reported_too(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **more: Any) -> Any:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr("re4.exporting.rebuild.job.run_gates", fail)
    error, report = shop.rebuild()
    assert isinstance(error, ZeroDivisionError)
    assert (report["outcome"], report["exit_code"]) == ("failed", 1)
    assert "by accident" in report["error"]
    assert {name for name in shop.files() if not name.startswith(".building-")} == {CURRENT, shop.first}


def test_a_live_version_that_cannot_be_read_at_this_moment_leaves_no_gate_out(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise BundleUnavailableError(f"{path}: try again")

    monkeypatch.setattr("re4.exporting.rebuild.job.open_version", fail)
    error, report = shop.rebuild()
    assert isinstance(error, BundleUnavailableError)
    assert (report["outcome"], report["exit_code"]) == ("failed", 1)
    assert shop.files() == {CURRENT, shop.first}


def test_a_lock_lost_on_the_way_publishes_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from re4.exporting.rebuild import job as rebuilding

    run_gates = rebuilding.run_gates

    def lose(*words: Any, **more: Any) -> Any:
        (shop.bundles / ".rebuilding").unlink()
        return run_gates(*words, **more)

    monkeypatch.setattr(rebuilding, "run_gates", lose)
    error, report = shop.rebuild()
    assert isinstance(error, BundleBusyError)
    assert report["exit_code"] == 4
    assert shop.files() == {CURRENT, shop.first}


def test_signals_are_left_alone_outside_the_main_thread(shop: Shop) -> None:
    with rebuild_lock(shop.bundles, "another"):
        ended: list[BaseException] = []

        def call() -> None:
            try:
                subcommand(shop.bundles, vectors=shop.vectors, ids=shop.ids)
            except BundleBusyError as error:
                ended.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert len(ended) == 1


def test_the_report_knows_every_way_to_end() -> None:
    report = RebuildReport(bundles="b", dry_run=False)
    with pytest.raises(SystemExit), report.ending():
        raise SystemExit(143)
    assert report.outcome == "interrupted"
    with pytest.raises(KeyboardInterrupt), report.ending():
        raise KeyboardInterrupt
    assert report.exit_code == 130
