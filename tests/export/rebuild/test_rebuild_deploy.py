"""The schedulers' examples: files of the right form, whose command line is one that `re4 rebuild` takes."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from re4.cli import build_app
from re4.exporting.rebuild.settings import RebuildRequest

DEPLOY = Path(__file__).parents[3] / "deploy" / "rebuild"
EXIT_CODES = {"0", "1", "2", "3", "4"}


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    parser.read_string(text)
    return parser


def cron_line() -> list[str]:
    lines = (DEPLOY / "re4-rebuild.cron").read_text().splitlines()
    (line,) = [line for line in lines if line and not line.startswith("#") and "=" not in line.split()[0]]
    return line.split(maxsplit=6)


def command(of: str) -> list[str]:
    if of == "cron":
        return shlex.split(cron_line()[6])
    return shlex.split(unit("re4-rebuild.service")["Service"]["ExecStart"])


@pytest.mark.parametrize("of", ["cron", "systemd"])
def test_the_command_is_one_that_rebuild_takes(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[RebuildRequest] = []
    monkeypatch.setattr("re4.exporting.rebuild.job.rebuild", lambda request, *_: requests.append(request))
    monkeypatch.setattr(RebuildRequest, "check_inputs", lambda request: None)  # there is no run here
    program, *words = command(of)
    assert program.endswith("re4")
    here = [re.sub("/srv/re4|/var/lib/node_exporter", str(tmp_path), word) for word in words]
    done = CliRunner().invoke(build_app(here), here)
    assert done.exit_code == 0, done.output
    assert requests[0].bundles == tmp_path / "bundles"
    assert requests[0].catalogue.catalogue == tmp_path / "catalogue.parquet"
    assert (tmp_path / "rebuild.json").exists()
    assert list(tmp_path.rglob("*.prom"))


def test_the_cron_line_has_a_time_and_a_user() -> None:
    *when, user, _ = cron_line()
    assert all(re.fullmatch(r"[\d*/,-]+", field) for field in when)
    assert len(when) == 5
    assert user == "re4"
    assert (DEPLOY / "re4-rebuild.cron").read_text().endswith("\n")  # cron ignores a last line without one


def test_the_units_belong_together() -> None:
    service, timer = unit("re4-rebuild.service"), unit("re4-rebuild.timer")
    assert timer["Timer"]["Unit"] == "re4-rebuild.service"
    assert service["Service"]["Type"] == "oneshot"
    assert service["Service"]["SuccessExitStatus"] == "4"
    assert "OnCalendar" in timer["Timer"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to ask")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name in ("re4-rebuild.service", "re4-rebuild.timer"):
        text = (DEPLOY / name).read_text()
        # It looks whether programs and users exist, which is not tested here.
        text = text.replace("/opt/re4/.venv/bin/re4", "/bin/true").replace("User=re4\n", "")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "re4-rebuild" not in done.stderr, done.stderr


def test_the_readme_names_every_file_and_exit_code() -> None:
    text = (DEPLOY / "README.md").read_text()
    assert all(file.name in text for file in DEPLOY.iterdir() if file.name != "README.md")
    assert all(re.search(rf"\b{code}\b", text) for code in EXIT_CODES)
