"""Generation of the Python stubs from the `.proto` files.

python protos/generate.py            write the stubs
python protos/generate.py --check    fail, with the names of the files, if the stubs are stale
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "re4" / "protos"
"""The stubs are imported by this path, through the link `re4/protos`."""


def generate(destination: Path) -> None:
    """Write the messages, the stub of the service and the types of both below a folder."""
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
    """Return the names of the stubs that differ from newly generated ones."""
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
    """Run the command line of this module."""
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
