"""`re4.export` and `re4.rebuild`: the options of the subcommands, values instead of printed lines."""

from pathlib import Path

import pytest

import re4
from re4.bundle.verify import read_manifest
from re4.exporting.rebuild.settings import RebuildRequest
from re4.exporting.settings import VersionSettings
from re4.settings.fields import declared


def test_the_options_are_those_of_the_subcommands() -> None:
    assert re4.ExportOptions.__annotations__.keys() == declared(VersionSettings).keys()
    assert re4.RebuildOptions.__annotations__.keys() == declared(RebuildRequest).keys()


def test_a_run_is_exported_and_rebuilt_without_a_printed_line(
    tiny_run: Path, tmp_path: Path, converted_once: None, capfd: pytest.CaptureFixture[str]
) -> None:
    bundles = tmp_path / "bundles"
    first = re4.export(str(tiny_run), str(bundles), index="flat", attributes=[])
    assert read_manifest(bundles / first).items.attributes == ()
    assert (bundles / "CURRENT").read_text().strip() == first
    tried = re4.rebuild(bundles, run=tiny_run, dry_run=True)
    assert (tried.version, tried.outcome) == (None, "dry run")
    rebuilt = re4.rebuild(str(bundles), run=str(tiny_run), keep=1)
    assert rebuilt.outcome == "published"
    assert (bundles / "CURRENT").read_text().strip() == rebuilt.version != first
    assert all(gate.passed for gate in rebuilt.gates)
    with pytest.raises(re4.GateError, match="count"):
        re4.rebuild(bundles, run=tiny_run, min_items_ratio=2.0, max_items_ratio=3.0)
    assert capfd.readouterr() == ("", "")


def test_wrong_options_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(re4.UsageError, match=r"unknown indx; .* Did you mean index for indx"):
        re4.export("run", tmp_path, indx="flat")  # type: ignore[call-arg]
    with pytest.raises(re4.UsageError, match="device is 'tpu'; choose one of cpu, cuda"):
        re4.export("run", tmp_path, device="tpu")  # type: ignore[typeddict-item]
    with pytest.raises(re4.UsageError, match="give either --run or --vectors"):
        re4.rebuild(tmp_path)
    assert list(tmp_path.iterdir()) == []
