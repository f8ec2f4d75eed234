"""The shape of the code: small rooms, imports in one direction; and `tools/rooms.py`, which reports it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILES_OF_A_ROOM = 16


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "tools" / "rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def modules(rooms: ModuleType) -> dict[str, Path]:
    found = rooms.modules_of(ROOT)
    assert {"re4.cli", "re4.serving.cli", "re4.exporting.cli", "re4.bundle.layout"} <= found.keys()
    assert len(set(found.values())) == len(found)
    return found


def test_no_room_has_many_files(rooms: ModuleType, modules: dict[str, Path]) -> None:
    sizes = {room: len(files) for room, files in rooms.rooms_of(ROOT, modules).items()}
    assert {room: size for room, size in sizes.items() if size > MAX_FILES_OF_A_ROOM} == {}


def test_modules_do_not_import_each_other_in_a_circle(rooms: ModuleType, modules: dict[str, Path]) -> None:
    imports = {name: rooms.imports_of(path, modules) for name, path in modules.items()}
    assert sum(map(len, imports.values())) > 1000
    assert rooms.circle_in(imports) == []


def test_the_report_shows_rooms_arrows_floors_and_circles(rooms: ModuleType, tmp_path: Path) -> None:
    sources = {
        "re4/cli.py": "from re4.exporting.build import index",
        "export/build/__init__.py": "",
        "export/build/index.py": "import re4.exporting.build.parts.lists",
        "export/build/parts/lists.py": "def late():\n    from re4.exporting import storage",
        "export/storage.py": "from re4.exporting.build.index import fill",
        "serving/api.py": "from re4.serving.host import threads\nfrom re4.serving import settings",
        "serving/settings.py": "from re4.serving.host.threads import limit",
        "serving/host/threads.py": "import os",
        **dict.fromkeys(["training/a.py", "bundle/a.py", "benchmarks/a.py"], ""),
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for folder in ("training", "bundle", "serving", "benchmarks"):
        (tmp_path / "re4" / folder).symlink_to(f"../{folder}")
    (tmp_path / "re4" / "exporting").symlink_to("../export")
    lines = list(rooms.describe(tmp_path))
    (export,) = (line for line in lines if line.startswith("export/"))
    assert "3 rooms, 3 files (at most 1 in a room, median 1 lines), 2 arrows, 0 floors" in export
    assert "  build/  2  → storage.py" in lines
    assert (
        "  CIRCLE: build → storage.py → build" in lines
        or "  CIRCLE: storage.py → build → storage.py" in lines
    )
    assert any(line.startswith("CIRCLE of modules: re4.exporting.") for line in lines)
    (serving,) = (line for line in lines if line.startswith("serving/"))
    assert "3 arrows, 3 floors" in serving
    assert "  api.py  → host, settings.py" in lines
