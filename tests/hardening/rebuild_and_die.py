"""Rebuild a bundle directory again and again while something goes wrong, and look at what is left.

usage: rebuild_and_die.py FOLDER        with orders on standard input, one a line: ACCIDENT COUNT

FOLDER is a `Shop`'s, its versions in FOLDER/bundles. Every rebuild is a fork of this process, which has
imported what a rebuild needs and computed nothing, so that a rebuild costs what its work costs. Each accident
comes at a random moment, or with a random amount of room left; after it `CURRENT` must name a complete
version, and the next rebuild must succeed and leave nothing but versions. Answers each order with one line of
JSON; an accident that leaves something wrong ends the process with what the rebuild said.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rebuild_samples import rebuild_words

import re4.exporting.assemble
import re4.exporting.rebuild.cli
import re4.exporting.rebuild.job
import re4.exporting.rebuild.quality_gates
from re4.bundle.layout import CURRENT
from re4.bundle.publishing.current import live_version, read_current
from re4.bundle.publishing.directory_lock import REBUILDING
from re4.bundle.publishing.versions import version_names
from re4.bundle.verify import verify_version
from re4.cli import main as re4

NUM_KEPT = 2
_FAILED, _BUSY = 1, 4
"""Exit codes of `re4 rebuild`."""


class Rebuilds:
    """The rebuilds of one directory, and what was seen of it between them."""

    def __init__(self, folder: Path) -> None:
        self.bundles = folder / "bundles"
        self._words = rebuild_words(
            self.bundles, folder / "vectors.npy", folder / "ids.npy", "--keep", NUM_KEPT
        )
        self._said = folder / "said.txt"
        self.names: set[str] = {read_current(self.bundles)}
        """Every version that `CURRENT` was seen to name."""
        self._usual_s: float | None = None
        self.most_bytes_left = 0
        """By an accident, beside versions."""

    def start(self, prepare: Callable[[], None] = lambda: None) -> int:
        """Begin one in a fork; its process id."""
        process = os.fork()
        if process:
            return process
        code = 70
        try:
            with self._said.open("wb") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            prepare()
            sys.argv = ["re4", *self._words]
            re4()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)

    def run(self, prepare: Callable[[], None] = lambda: None) -> int:
        """Run one to its end; the exit code."""
        return exit_code(self.start(prepare))

    def said(self) -> str:
        """What the newest one printed, on one line."""
        return " ".join(self._said.read_text(errors="replace").split())

    def usual_s(self) -> float:
        """Measure the time of a rebuild, the first time by two of them."""
        if self._usual_s is None:
            began = time.monotonic()
            for _ in range(2):
                self.succeed()
            self._usual_s = (time.monotonic() - began) / 2
        return self._usual_s

    def check_what_is_left(self) -> None:
        """After an accident: `CURRENT` names a complete version, and every other version is complete too."""
        assert "Traceback" not in self.said(), self.said()
        self.names.add(read_current(self.bundles))
        verify_version(live_version(self.bundles))
        names = version_names(self.bundles)
        for name in names:
            verify_version(self.bundles / name)
        others = [path for path in self.bundles.iterdir() if path.name not in {*names, CURRENT, "filler"}]
        self.most_bytes_left = max(self.most_bytes_left, sum(map(bytes_in, others)))

    def succeed(self) -> None:
        """The next rebuild publishes, and leaves versions and nothing else."""
        before = read_current(self.bundles)
        code = self.run()
        assert code == 0, f"the next rebuild ended with {code}: {self.said()}"
        self.check_what_is_left()
        assert read_current(self.bundles) != before
        left = {path.name for path in self.bundles.iterdir()} - {CURRENT} - set(version_names(self.bundles))
        assert not left, left


def exit_code(process: int) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def bytes_in(path: Path) -> int:
    """Size of a file, or of everything in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def killed(rebuilds: Rebuilds, count: int, rng: random.Random) -> dict[str, float | int]:
    """`kill -9` at a moment drawn evenly from a rebuild's whole time."""
    usual_s = rebuilds.usual_s()
    num_old = num_new = num_ended = 0
    for _ in range(count):
        before = read_current(rebuilds.bundles)
        process = rebuilds.start()
        time.sleep(rng.uniform(0.0, usual_s))
        os.kill(process, signal.SIGKILL)
        if exit_code(process) == -signal.SIGKILL:
            is_new = read_current(rebuilds.bundles) != before
            num_new, num_old = num_new + is_new, num_old + (not is_new)
        else:
            num_ended += 1
        rebuilds.check_what_is_left()
        rebuilds.succeed()
    return {
        "kills": count,
        "killed before publishing: the old version live": num_old,
        "killed after publishing: the new version live": num_new,
        "had ended by itself": num_ended,
        "seconds of a rebuild": usual_s,
    }


def disk_full(rebuilds: Rebuilds, count: int, rng: random.Random) -> dict[str, float | int]:
    """A file system with a random number of free bytes, from none to what a rebuild needs."""
    filler = rebuilds.bundles / "filler"
    needed = 3 * bytes_in(live_version(rebuilds.bundles))
    num_failed = num_published = 0
    for _ in range(count):
        free = shutil.disk_usage(rebuilds.bundles).free
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - rng.randrange(needed)))
        code = rebuilds.run()
        assert code in (0, _FAILED), f"exit code {code}: {rebuilds.said()}"
        num_failed, num_published = num_failed + (code == _FAILED), num_published + (code == 0)
        assert code == 0 or "no space left" in rebuilds.said().lower(), rebuilds.said()
        rebuilds.check_what_is_left()
        filler.unlink()
        rebuilds.succeed()
    return {"disks full": count, "failed, saying so": num_failed, "published all the same": num_published}


def file_size_limit(rebuilds: Rebuilds, count: int, rng: random.Random) -> dict[str, float | int]:
    """Writes fail beyond a random size of file: where no small file system can be mounted."""
    largest = max(path.stat().st_size for path in live_version(rebuilds.bundles).iterdir())
    num_failed = num_published = 0
    for _ in range(count):
        limit = rng.randrange(2 * largest)
        code = rebuilds.run(lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        assert code != 0 or limit >= largest
        num_failed, num_published = num_failed + (code != 0), num_published + (code == 0)
        rebuilds.check_what_is_left()
        rebuilds.succeed()
    return {"size limits": count, "failed": num_failed, "published all the same": num_published}


def two_at_once(rebuilds: Rebuilds, count: int, _: random.Random) -> dict[str, float | int]:
    """A second one starts while the first one holds the lock, stopped for that long."""
    lock = rebuilds.bundles / REBUILDING
    for _ in range(count):
        before = read_current(rebuilds.bundles)
        first = rebuilds.start()
        while not lock.exists():
            time.sleep(0.001)
        os.kill(first, signal.SIGSTOP)
        code = rebuilds.run()
        assert code == _BUSY, f"exit code {code}: {rebuilds.said()}"
        assert str(first) in rebuilds.said(), rebuilds.said()
        assert read_current(rebuilds.bundles) == before
        os.kill(first, signal.SIGCONT)
        assert exit_code(first) == 0
        assert read_current(rebuilds.bundles) != before
        rebuilds.check_what_is_left()
    return {"pairs": count, "one published, the other said who holds the lock": count}


ACCIDENTS = {
    "killed": killed,
    "disk-full": disk_full,
    "file-size-limit": file_size_limit,
    "two-at-once": two_at_once,
}


def main(folder: Path) -> None:
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written; this saves the time
    rebuilds = Rebuilds(folder)
    for order in sys.stdin:
        accident, count = order.split()
        rebuilds.most_bytes_left = 0
        figures = ACCIDENTS[accident](rebuilds, int(count), random.Random(0))
        figures["most bytes that an accident left beside versions"] = rebuilds.most_bytes_left
        sys.stdout.write(json.dumps({"figures": figures, "names": sorted(rebuilds.names)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
