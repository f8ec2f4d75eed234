"""C code, compiled on first use for the local CPU and kept in the user's cache folder."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from re4.common.files import replacing

if TYPE_CHECKING:  # the supervisor loads no NumPy
    from numpy.typing import NDArray

FLAGS: Final = (
    "-O3",
    "-march=native",
    "-fno-strict-aliasing",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-lm",
)
_COMPILE_S: Final = 120
_HEADERS: Final = Path(__file__).parent
"""Headers that the code of several folders includes."""

_log = logging.getLogger(__name__)


@cache
def compiler() -> str | None:
    """Return the path of the C compiler; None without one."""
    return shutil.which(os.environ.get("CC") or "cc")


def is_native_allowed() -> bool:
    """Return whether there is a C compiler and `RE4_NATIVE` is not 0."""
    return os.environ.get("RE4_NATIVE", "1") != "0" and compiler() is not None


def load_library(source: Path, flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """Return a C file as a library, compiled unless it was before.

    It may include headers of its folder and of this one.

    Raises:
        OSError: it cannot be compiled or loaded here.
        subprocess.SubprocessError: the compiler fails.
    """
    program = compiler()
    if program is None:
        raise OSError("there is no C compiler")
    files = [*sorted(source.parent.glob("*.[ch]")), *sorted(_HEADERS.glob("*.h"))]
    inputs = repr([*(file.read_bytes() for file in files), program, _version(program), list(flags), _cpu()])
    name = f"{source.stem}-{hashlib.sha256(inputs.encode()).hexdigest()[:20]}.so"
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / name).exists():
            with replacing(folder / name) as part:
                _compile(program, source, flags, part)
        return ctypes.CDLL(str(folder / name))
    except OSError:  # the cache folder cannot be written
        with tempfile.TemporaryDirectory() as scratch:
            _compile(program, source, flags, Path(scratch) / name)
            return ctypes.CDLL(str(Path(scratch) / name))


def load_optional_library(source: Path, otherwise: str, flags: Sequence[str] = FLAGS) -> ctypes.CDLL | None:
    """Return a C file as a library; None, with a line in the log, where it cannot be compiled or loaded.

    Args:
        source: The C file.
        otherwise: The effect of doing without it, for the log.
        flags: Those of the compiler.
    """
    try:
        return load_library(source, flags)
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()
        _log.info(f"{source.name} could not be compiled; {otherwise}: {reason}")
        return None


def address_of(array: "NDArray[Any]") -> int:
    """Return where an array begins in memory; its attribute `ctypes` costs several times as much."""
    return int(array.__array_interface__["data"][0])


def _compile(program: str, source: Path, flags: Sequence[str], out: Path) -> None:
    subprocess.run(
        [program, str(source), *flags, f"-I{_HEADERS}", "-o", str(out)],
        check=True,
        capture_output=True,
        text=True,
        timeout=_COMPILE_S,
    )


def _cache_folder() -> Path:
    cached = os.environ.get("XDG_CACHE_HOME")
    return (Path(cached) if cached else Path("~/.cache").expanduser()) / "re4"


@cache
def _version(program: str) -> str:
    return subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout


@cache
def _cpu() -> str:
    """Identify the CPU: another one needs other machine code."""
    known = Path("/proc/cpuinfo")
    if known.exists():
        lines = known.read_text(encoding="utf-8").splitlines()
        return "".join(
            sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        )
    return platform.processor()
