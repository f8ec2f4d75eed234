"""Generate the Python stubs from the `.proto` files, or check that those in the tree are fresh.

python protos/generate.py            write them
python protos/generate.py --check    fail, naming each file, where they differ
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "re4" / "protos"
"""The path that the stubs are imported by."""


def generate(destination: Path) -> None:
    """Write the messages, the service's stub and the types of both below `destination`."""
    sources = sorted(str(path.relative_to(ROOT)) for path in PROTOS.rglob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={ROOT}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={destination}",
        f"--pyi_out={destination}",
        f"--grpc_python_out={destination}",
        f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
        f"--mypy_grpc_out={destination}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        sys.exit(1)


def stale_files() -> list[str]:
    """Name the stubs in the tree that differ from freshly generated ones."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.py*")}
    present = {path.relative_to(ROOT) for path in PROTOS.rglob("*_pb2*.py*")} - {
        path.relative_to(ROOT) for path in PROTOS.rglob("__pycache__/*")
    }
    return sorted(
        str(name)
        for name in fresh.keys() | present
        if name not in fresh or name not in present or (ROOT / name).read_bytes() != fresh[name]
    )


def main() -> None:
    """Run the command line described at the top of this file."""
    if sys.argv[1:] == ["--check"]:
        stale = stale_files()
        if stale:
            sys.exit(f"stubs differ from protos/: {', '.join(stale)}. Run: make protos")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        generate(ROOT)


if __name__ == "__main__":
    main()
