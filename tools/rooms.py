"""The shape of the code: rooms, files, arrows, floors, circles, lines.

python tools/rooms.py            this checkout
python tools/rooms.py FOLDER     another one, such as an earlier version

A room is a folder with modules. The children of a top folder are its rooms, each with the rooms inside it,
and the modules beside them. An arrow is one child that imports another: the layers contracts of
pyproject.toml hold the same arrows one way. The number of floors is the length of the longest chain of
arrows. A circle is a chain that returns to its start.
The standard library only, so that any checkout can be measured.
"""

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

FOLDERS = ("re4", "training", "export", "bundle", "serving", "benchmarks")
SUFFIXES = {".py", ".pyi", ".c", ".h", ".proto", ".j2", ".sh"}

Graph = Mapping[str, set[str]]


def modules_of(root: Path) -> dict[str, Path]:
    """Return every module by its import name. Links inside `re4/` lead to the other folders."""
    links = {
        path.resolve().name: f"re4.{path.name}" for path in (root / "re4").iterdir() if path.is_symlink()
    }
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if any(part.startswith(".") for part in parts):
                continue  # an environment of `make peers`
            name = ".".join([links.get(folder, folder), *parts])
            found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, modules: Mapping[str, Path]) -> set[str]:
    """Return the modules of this checkout that a file imports, anywhere in the file."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                named.add(full if full in modules else node.module)
        elif isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
    return {name for name in named & modules.keys() if modules[name] != path}


def floors(graph: Graph) -> int:
    """Return the length of the longest chain of arrows; CycleError where a chain returns to its start."""
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    num_floors = 0
    while ready := sorter.get_ready():
        num_floors += 1
        sorter.done(*ready)
    return num_floors


def circle_in(graph: Graph) -> list[str]:
    """Return one circle, its first node again at the end; empty where there is none."""
    try:
        floors(graph)
    except CycleError as error:
        return list(error.args[1])
    return []


def children_of(folder: Path, imports: Graph, modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return the arrows between the children of a top folder, by the importing child."""

    def child(name: str) -> str | None:
        path = modules[name]
        inside = path.is_relative_to(folder) and path != folder / "__init__.py"
        return path.relative_to(folder).parts[0] if inside else None

    arrows: dict[str, set[str]] = {}
    for name in modules:
        if (own := child(name)) is not None:
            others = {child(other) for other in imports[name]} - {own, None}
            arrows.setdefault(own, set()).update(other for other in others if other is not None)
    return arrows


def lines_of(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_bytes().splitlines())


def rooms_of(folder: Path, modules: Mapping[str, Path]) -> dict[Path, list[int]]:
    """Return the lines of each file by room; an `__init__.py` that is only a docstring does not count."""
    rooms: dict[Path, list[int]] = {}
    for path in modules.values():
        if path.is_relative_to(folder) and (path.name != "__init__.py" or lines_of(path) > 3):
            rooms.setdefault(path.parent, []).append(lines_of(path))
    return rooms


def describe(root: Path) -> Iterator[str]:
    """Yield the shape as text, a folder at a time."""
    modules = modules_of(root)
    imports = {name: imports_of(path, modules) for name, path in modules.items()}
    for folder in (root / name for name in FOLDERS):
        rooms, arrows = rooms_of(folder, modules), children_of(folder, imports, modules)
        most, sizes = max(map(len, rooms.values())), [size for room in rooms.values() for size in room]
        circle = circle_in(arrows)
        yield (
            f"{folder.name}/  {len(rooms)} rooms, {len(sizes)} files "
            f"(at most {most} in a room, median {statistics.median(sizes):.0f} lines), "
            f"{sum(map(len, arrows.values()))} arrows, "
            f"{0 if circle else floors(arrows)} floors, {sum(sizes):,} lines of Python"
        )
        in_child = Counter()
        for room, files in rooms.items():
            in_child[room.relative_to(folder).parts[:1]] += len(files)
        for child in sorted(arrows):
            files = "" if child.endswith(".py") else f"/  {in_child[(child,)]}"
            yield f"  {child}{files}" + (f"  → {', '.join(sorted(arrows[child]))}" if arrows[child] else "")
        if circle:
            yield f"  CIRCLE: {' → '.join(circle)}"
    if circle := circle_in(imports):
        yield f"CIRCLE of modules: {' → '.join(circle)}"
    total = sum(
        lines_of(path)
        for folder in (*FOLDERS, "protos")
        for path in (root / folder).rglob("*")
        if path.suffix in SUFFIXES
        and path.is_file()
        and "_pb2" not in path.name
        and not {"results", "__pycache__"} & set(path.parts)
        and not any(part.startswith(".venv") for part in path.parts)
    )
    yield f"all: {total:,} lines of Python, C, protocol and templates, without tests and generated stubs"


if __name__ == "__main__":
    start = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
    print(*describe(start.resolve()), sep="\n")
