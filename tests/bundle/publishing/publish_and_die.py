"""Publish a version again and again in child processes, each killed some lines of code later than the last.

usage: publish_and_die.py BUNDLES FIRST_LINE STEP

Every child forks from here, traces the lines of the publishing code and of `shutil`, and kills itself with
SIGKILL at its line. After each death `CURRENT` must name a complete version, the old one or the child's, and
the next publisher must be able to clear up. The last child lives and ends the loop.
Prints one JSON object: the number of deaths, and how often `CURRENT` named the old and the new version.
"""

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from dying_child import lives
from sample_versions import publish_one

import re4.bundle.manifest
import re4.bundle.publishing.publish
import re4.bundle.safe_files
import re4.common.file_lock
import re4.common.files
from re4.bundle.layout import CURRENT, INDEX, STAGING_PREFIX
from re4.bundle.publishing.current import live_version, read_current
from re4.bundle.publishing.publish import stage_version
from re4.bundle.verify import verify_version

TRACED = (
    re4.bundle.publishing.publish,
    re4.common.file_lock,
    re4.bundle.safe_files,
    re4.bundle.manifest,
    re4.common.files,
    shutil,
)


def plant_leftover(bundles: Path) -> None:
    """Make the remains of a dead publisher, so that every child begins by clearing up."""
    version = bundles / f"{STAGING_PREFIX}0123456789abcdef" / "version"
    version.mkdir(parents=True)
    (version / INDEX).write_bytes(b"half an ind")
    (version.parent / CURRENT).write_text("half a na")


def clear_up(bundles: Path) -> None:
    """Stage and give up, which must remove the remains of dead publishers."""
    with stage_version(bundles):
        pass
    assert not list(bundles.glob(".*"))


def main(bundles: Path, first_line: int, step: int) -> None:
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written; this saves the time
    publish_one(bundles, "before")
    contents = {read_current(bundles): "before"}
    counts = {"died": 0, "old": 0, "new": 0}
    lived = False
    while not lived:
        before = read_current(bundles)
        plant_leftover(bundles)
        content = f"content {counts['died']}"
        line = first_line + step * counts["died"]
        lived = lives(partial(publish_one, bundles, content), line, traced=TRACED)
        after = live_version(bundles)
        verify_version(after)
        contents.setdefault(after.name, content)
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
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
