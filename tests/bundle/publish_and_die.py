"""Publish a version again and again in child processes, each killed one line of code later than the last.

usage: publish_and_die.py BUNDLES

Every child forks from here, traces the lines of the publishing code (and of `shutil`, which cleans up), and
kills itself with SIGKILL when it reaches its line. After each death `CURRENT` must name a complete version,
the old one or the one that the child published, and the next publisher must be able to clear up. The last
child lives, and ends the loop.
Prints one JSON object: how many died, and how often `CURRENT` named the old and the new version.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from sample_versions import publish_one

import bundle.files
import bundle.manifest
import bundle.publish
import re4.files
from bundle.current import live_version, read_current
from bundle.layout import CURRENT, INDEX, STAGING_PREFIX
from bundle.publish import stage_version
from bundle.verify import verify_version

TRACED = {module.__file__ for module in (bundle.publish, bundle.files, bundle.manifest, re4.files, shutil)}


def kill_at(line_number: int) -> None:
    """Arm this process: it dies at the given line event of the traced files."""
    left = line_number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def child(bundles: Path, content: str, line_number: int) -> bool:
    """Publish in a child that dies at the line; whether it lived."""
    process = os.fork()
    if process == 0:
        kill_at(line_number)
        publish_one(bundles, content)
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0


def plant_leftover(bundles: Path) -> None:
    """What a publisher that died leaves, so that every child begins by clearing up."""
    version = bundles / f"{STAGING_PREFIX}0123456789abcdef" / "version"
    version.mkdir(parents=True)
    (version / INDEX).write_bytes(b"half an ind")
    (version.parent / CURRENT).write_text("half a na")


def clear_up(bundles: Path) -> None:
    """Stage and give up, which must remove whatever the dead left."""
    with stage_version(bundles):
        pass
    assert not list(bundles.glob(".*"))


def main(bundles: Path) -> None:
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written; this saves the time
    publish_one(bundles, "before")
    contents = {read_current(bundles): "before"}
    counts = {"died": 0, "old": 0, "new": 0}
    lived = False
    while not lived:
        before = read_current(bundles)
        plant_leftover(bundles)
        lived = child(bundles, f"content {counts['died']}", line_number=counts["died"])
        after = live_version(bundles)
        verify_version(after)
        contents.setdefault(after.name, f"content {counts['died']}")
        assert (after / INDEX).read_bytes() == f"index {contents[after.name]}".encode() * 100
        if not lived:
            counts["died"] += 1
            counts["old" if after.name == before else "new"] += 1
            clear_up(bundles)
        for path in set(bundles.iterdir()) - {after, bundles / CURRENT}:
            verify_version(path)  # a version that did not go live is whole, too
            shutil.rmtree(path)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
