"""The documentation names what exists: links, paths, subcommands with options, settings, metrics."""

import re
import runpy
import shlex
import tomllib
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from re4.cli import build_app
from re4.serving.settings import ServerSettings
from re4.settings.fields import declared

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "benchmarks",
    "bundle",
    "deploy",
    "docs",
    "export",
    "protos",
    "re4",
    "serving",
    "tests",
    "tools",
    "training",
)
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(
            page
            for folder in FOLDERS
            for page in (ROOT / folder).rglob("README.md")
            if "results" not in page.parts
        ),
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

EXAMPLES = ("training/encoders/gated.py", "training/samplers/square_root.py")
"""Files that a reader is to write."""

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
_FILE = re.compile(r"[\w/-]+(\.(py|toml|yml|yaml|proto|c)|/)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    return _FENCE.sub("", text_of(page))


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Those that the site and a code host both make of the headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return frozenset(site for heading in headings if (site := site_anchor(heading)) == host_anchor(heading))


def site_anchor(heading: str) -> str:
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def host_anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", NAMES)
def test_links_and_anchors_resolve(page: str) -> None:
    broken = []
    for target in _LINK.findall(prose_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", NAMES)
def test_paths_exist(page: str) -> None:
    """Paths of the repository, and in a folder's README the files and rooms of that folder."""
    here = (ROOT / page).parent
    missing = []
    for span in _SPAN.findall(prose_of(page)):
        of_repository = _PATH.fullmatch(span) and span.partition("/")[0] in FOLDERS and "/" in span
        of_folder = here != ROOT and here.name != "docs" and _FILE.fullmatch(span)
        exists = (ROOT / span).exists() or (here / span).exists()
        if (of_repository or of_folder) and not exists and "my_" not in span and span not in EXAMPLES:
            missing.append(span)
    assert not missing


@pytest.mark.parametrize("page", NAMES)
def test_names_stand_in_the_files_that_are_named_with_them(page: str) -> None:
    pairs = re.findall(r"`(\w+)` \(`([\w/]+\.py)`\)", prose_of(page))
    assert not [
        (name, file)
        for name, file in pairs
        if file not in EXAMPLES and not re.search(rf"\b{name}\b", text_of(file))
    ]


@pytest.mark.parametrize(
    ("page", "num_tests"), [("docs/threat-model.md", 50), ("benchmarks/results/hardening/README.md", 25)]
)
def test_the_tests_that_a_page_names_exist(page: str, num_tests: int) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text_of(page))
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).exists() or not re.search(rf"^ *def {name}\(", text_of(file), re.MULTILINE)
    ]
    assert len(named) > num_tests
    assert not missing


@cache
def command_line() -> Any:
    """All subcommands, as typer's own copy of click holds them."""
    return typer.main.get_command(build_app([]))


def commands_in(page: str) -> Iterator[list[str]]:
    """The words after each `re4` in shell blocks and in code spans."""
    blocks = [body for language, body in _FENCE.findall(text_of(page)) if language == "sh"]
    for block in [*blocks, *_SPAN.findall(prose_of(page))]:
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(re.split(r"\s#\s|…", line)[0], comments=False)
            except ValueError:  # a quote that a grpcurl line goes on with
                continue
            if words and words[0] in ("re4", ".venv/bin/re4") and len(words) > 1:
                yield words[1:]


def problem_of(words: list[str]) -> str | None:
    """What is wrong with a command; None where it could run."""
    command = command_line()
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        found = command.commands.get(words[0])
        if found is None:
            return f"no subcommand {words[0]}"
        command, words = found, words[1:]
    known = {"--help", "-h"} | {
        name for option in command.params for name in (*option.opts, *option.secondary_opts)
    }
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"no option {unknown}" if unknown else None


@pytest.mark.parametrize("page", NAMES)
def test_subcommands_and_options_exist(page: str) -> None:
    assert not [(words, problem) for words in commands_in(page) if (problem := problem_of(words))]


@cache
def every_option() -> frozenset[str]:
    commands, options = [command_line()], set()
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        options.update(name for option in command.params for name in (*option.opts, *option.secondary_opts))
    return frozenset(options)


@pytest.mark.parametrize("page", NAMES)
def test_options_that_are_named_alone_exist(page: str) -> None:
    """Those of other programs are in blocks only, but for the peers' `--port`."""
    named = {
        span.split()[0].partition("=")[0] for span in _SPAN.findall(prose_of(page)) if span.startswith("--")
    }
    assert not named - every_option() - {"--help", "--port"}


def test_every_gate_is_in_the_table_and_no_other() -> None:
    source = (ROOT / "export/rebuild/quality_gates.py").read_text(encoding="utf-8")
    table = text_of("docs/export-and-rebuild.md").partition("## Gates")[2].partition("All gates")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(re.findall(r'name="(\w+)"', source))


def test_every_setting_of_the_server_is_in_the_table_and_no_other() -> None:
    table = re.findall(
        r"^\| (`[^|]+`) \|", text_of("docs/operations.md").partition("## Deploy")[0], re.MULTILINE
    )
    named = {name for cell in table for name in _SPAN.findall(cell)}
    assert named == set(declared(ServerSettings))


def test_every_metric_of_the_server_is_in_the_table_and_no_other() -> None:
    source = (ROOT / "serving/observability/metrics.py").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(re4_\w+)` \|", text_of("docs/metrics.md"), re.MULTILINE)
    assert {name.removesuffix("_total") for name in table} == set(re.findall(r'"(re4_\w+)"', source))


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [name for name in NAMES if name.startswith("docs/") and f"{name}\n" not in navigation]


def test_the_script_of_the_picture_draws_a_user(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "docs/pictures/interests.py"))
    user = script["Shown"](
        place=0,
        attention=np.array([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]], np.float32),
        history=["shoes", "rods", "rods"],
        candidates=[["shoes", "shoes"], ["rods", "hats"]],
    )
    assert user.agreement() == (0.625, 0.0625)  # own: 0.75 and (1 + 0) / 2; others: (0.25 + 0) / 2 and 0
    script["draw"](user, tmp_path / "user.png")
    assert (tmp_path / "user.png").stat().st_size > 1_000


def test_every_file_names_the_version_of_the_package() -> None:
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    assert f"Version {version} " in text_of("README.md")
    assert f'appVersion: "{version}"' in text_of("deploy/helm/Chart.yaml")
    assert re.search(r"^## (\d\S*)$", text_of("CHANGELOG.md"), re.MULTILINE)[1] == version
