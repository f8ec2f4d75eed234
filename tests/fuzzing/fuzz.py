"""Fuzz the parsers of the project, guided by coverage (atheris).

    python tests/fuzzing/fuzz.py [--seconds N] [--grow] [TARGET ...]

The time is divided among the targets. Each runs in a process of its own, one on each core, from the corpus in
the repository. To import the parsers for coverage takes seconds, so each core does it once and forks.
An input that makes a target raise, hang for 10 s or take 2 GiB of memory is written to `build/fuzz/`, and
the exit code is 1. `--grow` adds the inputs that reach more code to the corpus.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
FOUND = HERE.parents[1] / "build" / "fuzz"
"""A file for each target, an escaped input in each line."""
MAX_INPUT_BYTES = 8192
THIS = (sys.executable, str(Path(__file__).resolve()))
INSTRUMENTED = ["re4", "tomllib", "json", "csv"]
LIMITS = ("-timeout=10", "-rss_limit_mb=2048", f"-max_len={MAX_INPUT_BYTES}", "-print_final_stats=1")


def read_corpus(name: str) -> list[bytes]:
    """Return the inputs of a target."""
    lines = (CORPUS / f"{name}.txt").read_text("ascii").splitlines()
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in lines]


def write_corpus(name: str, inputs: Iterable[bytes]) -> None:
    """Replace the inputs of a target."""
    lines = [
        data.decode("latin-1").encode("unicode_escape").decode()
        for data in sorted(set(inputs), key=lambda data: (len(data), data))
    ]
    (CORPUS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), "ascii")


def unpack_corpus(name: str, folder: Path) -> None:
    """Write the inputs of a target into a folder, as the fuzzer reads them."""
    for number, data in enumerate(read_corpus(name)):
        (folder / f"{number:04}").write_bytes(data)


def fuzz_one(name: str, arguments: list[str], folder: Path) -> None:
    """Run one target in this process, with an empty folder; does not return."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz_targets import TARGETS

        parse = TARGETS[name](folder)
    again = FOUND / f"{name}.sh"  # a merge starts this program again
    again.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__)}" --inside {name} "$@"\n')
    again.chmod(0o755)
    atheris.Setup([str(again), *arguments], parse)
    atheris.Fuzz()


def memory_folder() -> TemporaryDirectory[str]:
    """Return an empty folder, in memory where there is such a place."""
    return TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def run_forked(name: str, arguments: list[str]) -> tuple[int, str]:
    """Run one target in a fork of this process; its exit code and what it reported."""
    with TemporaryFile() as output, memory_folder() as folder:
        process = os.fork()
        if process == 0:
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                fuzz_one(name, arguments, Path(folder))
            except Exception:
                traceback.print_exc()
            finally:  # whatever happened, the fork never returns to its parent's code
                os._exit(1)
        _, status = os.waitpid(process, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


def fuzz(name: str, seconds: float) -> bool:
    """Fuzz a target for a time; whether nothing was found."""
    fresh = FOUND / name
    fresh.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    limits = (f"-max_total_time={max(1, round(seconds))}", f"-artifact_prefix={FOUND}/{name}-", *LIMITS)
    with TemporaryDirectory() as folder:
        unpack_corpus(name, Path(folder))
        code, output = run_forked(name, [*limits, str(fresh), folder])
    num_runs = next(
        (line.split()[-1] for line in output.splitlines() if "number_of_executed_units" in line), "?"
    )
    took_s = time.monotonic() - began_s
    result = "nothing found" if code == 0 else f"FAILED (exit code {code}), input in {FOUND}/{name}-*"
    lines = [f"{name:<22}{num_runs:>12} inputs in {took_s:4.0f} s: {result}"]
    if code:
        lines += [line for line in output.splitlines()[-60:] if not line.startswith("stat::")]
    print("\n".join(lines), flush=True)
    return code == 0


def grow(name: str) -> None:
    """Add the inputs that were found and that reach more code to the corpus; those that are there stay."""
    with TemporaryDirectory() as folder:
        unpack_corpus(name, Path(folder))
        command = [*THIS, "--inside", name, "-merge=1", *LIMITS, folder, str(FOUND / name)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        code, output = done.returncode, done.stdout.decode(errors="replace")
        inputs = [file.read_bytes() for file in Path(folder).iterdir()]
    if code or "Permission denied" in output:
        sys.exit(f"{name}: the corpus cannot be merged:\n{output[-2000:]}")
    write_corpus(name, inputs)
    shutil.rmtree(FOUND / name)
    print(f"{name:<22}{len(inputs):>6} inputs in the corpus")


def fuzz_several(names: list[str], seconds: float) -> bool:
    """Fuzz targets one after another; whether nothing was found."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        import fuzz_targets  # noqa: F401 - the forks have it
    are_good = [fuzz(name, seconds) for name in names]
    return all(are_good)


def main() -> int:
    """Fuzz, and return the exit code."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    if sys.argv[1:2] == ["--inside"]:
        with memory_folder() as folder:
            fuzz_one(sys.argv[2], sys.argv[3:], Path(folder))
    if sys.argv[1:2] == ["--several"]:
        return 0 if fuzz_several(sys.argv[3:], float(sys.argv[2])) else 1
    targets = sorted(file.stem for file in CORPUS.iterdir())
    parser = argparse.ArgumentParser(description="Fuzz the parsers of the project, guided by coverage.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(targets)}")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all targets (default: an hour)")
    parser.add_argument("--grow", action="store_true", help="add what was found to the corpus")
    chosen = parser.parse_args()
    names = chosen.targets or targets
    if unknown := sorted(set(names) - set(targets)):
        parser.error(f"unknown {', '.join(unknown)}; known are {', '.join(targets)}")
    if importlib.util.find_spec("atheris") is None:
        print(
            f"nothing is fuzzed: atheris has no build for Python {sys.version_info.major}."
            f"{sys.version_info.minor} here. The tests run the corpus through every parser all the same"
        )
        return 0
    num_cores = len(os.sched_getaffinity(0))
    seconds = chosen.seconds * min(num_cores, len(names)) / len(names)
    cores = [
        subprocess.Popen([*THIS, "--several", str(seconds), *names[core::num_cores]])
        for core in range(min(num_cores, len(names)))
    ]
    are_good = [core.wait() == 0 for core in cores]
    if chosen.grow and all(are_good):
        for name in names:
            grow(name)
    return 0 if all(are_good) else 1


if __name__ == "__main__":
    sys.exit(main())
