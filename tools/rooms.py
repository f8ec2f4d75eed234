"""The shape of the code: rooms, files a room, arrows between rooms, circles, lines.

python tools/rooms.py            this checkout
python tools/rooms.py FOLDER     another one, such as an earlier version

A room is a folder with modules in it; its own modules count, not those of the rooms inside. An arrow is
one room that imports another. A circle is a set of modules that import each other.
The standard library only, so that any checkout can be measured.
"""

import ast
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDERS = ("re4", "training", "export", "bundle", "serving", "benchmarks")
IMPORT_NAMES = {"export": "re4.exporting"} | {name: f"re4.{name}" for name in FOLDERS[1:] if name != "export"}
"""Where a folder's modules are imported from. Earlier versions imported a folder by its own name."""


def modules_of(root: Path) -> Mapping[str, Path]:
    """Every module by its import name; links inside `re4/` are other folders' and are passed over."""
    found = {}
    prefixed = (root / "re4" / "serving").is_symlink()
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if folder == "re4" and len(parts) > 2 and (root / "re4" / parts[1]).is_symlink():
                continue
            name = ".".join(parts[1:] if parts[-1] != "__init__" else parts[1:-1])
            top = IMPORT_NAMES.get(folder, "re4") if prefixed else folder
            found[f"{top}.{name}".rstrip(".")] = path
    return found


def imports_of(path: Path, modules: Mapping[str, Path]) -> set[str]:
    """The modules of this checkout that a file imports, wherever in the file it does."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                named.add(full if full in modules else node.module)
        elif isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
    return named & modules.keys()


def circles_in(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of nodes that reach each other (Tarjan's strongly connected components of two or more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in arrows.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    sys.setrecursionlimit(10_000)
    for node in list(arrows):
        if node not in index:
            visit(node)
    return found


def lines_of(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_bytes().splitlines())


def describe(root: Path) -> Iterator[str]:
    """The shape as text, a folder at a time."""
    modules = modules_of(root)
    imports = {name: imports_of(path, modules) - {name} for name, path in modules.items()}
    for folder in FOLDERS:
        own = {name: path for name, path in modules.items() if path.relative_to(root).parts[0] == folder}
        room_of = {name: str(path.parent.relative_to(root)) for name, path in own.items()}
        files, arrows = defaultdict(list), defaultdict(set)
        for name, path in own.items():
            if path.name != "__init__.py" or lines_of(path) > 3:
                files[room_of[name]].append(lines_of(path))
            for other in imports[name] & own.keys():
                if room_of[other] != room_of[name]:
                    arrows[room_of[name]].add(room_of[other])
        sizes = [size for room in files.values() for size in room]
        yield (
            f"{folder}/  {len(files)} rooms, {len(sizes)} files "
            f"(at most {max(map(len, files.values()))} in a room, "
            f"median {statistics.median(sizes):.0f} lines), {sum(map(len, arrows.values()))} arrows, "
            f"{sum(sizes):,} lines of Python"
        )
        for room in sorted(files):
            targets = ", ".join(sorted(other.removeprefix(f"{folder}/") for other in arrows[room]))
            yield f"  {room}/  {len(files[room])}" + (f"  → {targets}" if targets else "")
        for circle in circles_in(arrows):
            yield f"  CIRCLE of rooms: {', '.join(circle)}"
    for circle in circles_in(imports):
        yield f"CIRCLE of modules: {', '.join(circle)}"
    total = sum(
        lines_of(path)
        for folder in (*FOLDERS, "protos")
        for path in (root / folder).rglob("*")
        if path.suffix in {".py", ".c", ".h", ".proto", ".j2", ".sh"}
        and path.is_file()
        and "_pb2" not in path.name
        and not {"results", "__pycache__"} & set(path.parts)
        and not any(part.startswith(".venv") for part in path.parts)
    )
    yield f"all: {total:,} lines of Python, C, protocol and templates, without tests and generated stubs"


if __name__ == "__main__":
    start = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
    print(*describe(start.resolve()), sep="\n")
