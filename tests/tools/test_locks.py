"""The lock files: every dependency at the version of the constraints, with hashes; the audit of them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("pip", "torch", "cpu", "gpu", "cuda", "docs", "fuzz", "audit", "torchrec")
EXTRAS = {
    "cpu": ("cpu", "dev"),
    "gpu": ("gpu", "dev"),
    "docs": ("docs",),
    "fuzz": ("fuzz",),
    "audit": ("audit",),
}
ENTRY = re.compile(r"^(\S+)==([^ ;]+)(?: ;[^\\]*)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name: str) -> dict[str, set[str]]:
    """The versions of each package of a lock: more than one where versions of Python differ."""
    found: dict[str, set[str]] = {}
    for package, version, _ in ENTRY.findall((ROOT / "locks" / f"{name}.txt").read_text()):
        found.setdefault(normal(package), set()).add(version)
    return found


def dependencies(*extras: str) -> set[str]:
    """Names of the direct dependencies with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = set()
    for text in [*project["dependencies"], *(text for extra in extras for text in extra_of(project, extra))]:
        found.add(normal(re.match(r"[\w.-]+", text)[0]))  # type: ignore[index]
    return found


def extra_of(project: dict[str, Any], name: str) -> list[str]:
    found: list[str] = []
    for text in project["optional-dependencies"][name]:
        own = re.match(r"re4-retrieval\[(.*)\]", text)
        found += [each for extra in own[1].split(",") for each in extra_of(project, extra)] if own else [text]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_hashes(name: str) -> None:
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert text.startswith("#")
    num_packages = len(re.findall(r"^[^#\s]", text, re.MULTILINE))
    assert num_packages == len(ENTRY.findall(text)) > 0
    assert "://" not in text  # no host is named


@pytest.mark.parametrize("name", EXTRAS)
def test_every_dependency_is_locked(name: str) -> None:
    """Where this fails after a change of pyproject.toml: make lock."""
    assert dependencies(*EXTRAS[name]) - set(locked(name)) == set()


@pytest.mark.parametrize("name", NAMES)
def test_the_locks_have_the_versions_of_the_constraints(name: str) -> None:
    """Where this fails after a change of constraints.txt: make lock."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}
    differ = {
        package: versions
        for package, versions in locked(name).items()
        if package in pinned and versions != {pinned[package]}
    }
    assert not differ


def test_the_makefile_installs_from_locks_alone() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = [line.strip() for line in makefile.splitlines() if "pip install" in line]
    assert installs == ["INSTALL := $(BIN)/pip install --quiet --no-deps --no-build-isolation"]
    own = [line.strip() for line in makefile.splitlines() if "$(INSTALL)" in line]
    assert own == ["LOCKED := $(INSTALL) --require-hashes --requirement", "$(INSTALL) --editable ."]
    assert "cyclonedx-py requirements" in makefile


JINJA = {"name": "jinja2", "version": "3.1.2", "vulns": [{"id": "CVE-0000-1", "fix_versions": ["3.1.3"]}]}
CLEAN = {"name": "rich", "version": "15", "vulns": []}
UNKNOWN = {"name": "rich", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "says"),
    [
        (json.dumps({"dependencies": [CLEAN]}), "", 0, "1 packages audited, 0 vulnerabilities known"),
        (json.dumps({"dependencies": [CLEAN, JINJA]}), "", 1, "jinja2 3.1.2: CVE-0000-1, fixed in 3.1.3"),
        (json.dumps({"dependencies": [UNKNOWN]}), "", 0, "NOT AUDITED"),
        ("", "x\nrequests.exceptions.ConnectionError: no route", 0, "NOT AUDITED"),
    ],
)
def test_an_audit_fails_on_findings_and_reports_what_it_cannot_reach(
    stdout: str,
    stderr: str,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import audit

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=stdout, stderr=stderr))
    assert audit.main() == code
    assert says in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "audit")
