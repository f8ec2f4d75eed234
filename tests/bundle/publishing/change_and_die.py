"""Roll back and prune again and again in child processes, each killed some lines of code later than the last.

usage: change_and_die.py BUNDLES FIRST_LINE STEP

The directory has versions of different times; the newest is live. After each death `CURRENT` must name a
version, every version must be complete, and those that must stay must be there. Prints one JSON object: the
number of deaths.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from dying_child import lives

import re4.bundle.publishing.directory_lock
import re4.bundle.publishing.retention
import re4.bundle.publishing.rollback
import re4.common.files
from re4.bundle.publishing.current import read_current
from re4.bundle.publishing.retention import prune
from re4.bundle.publishing.rollback import roll_back
from re4.bundle.publishing.versions import version_names
from re4.bundle.verify import verify_version

TRACED = (
    re4.bundle.publishing.directory_lock,
    re4.bundle.publishing.retention,
    re4.bundle.publishing.rollback,
    re4.common.files,
    shutil,
)


def die_at_lines(change: Callable[[], object], check: Callable[[], None]) -> int:
    """Return the number of deaths before a child lived."""
    first_line, step = map(int, sys.argv[2:])
    num_deaths = 0
    while not lives(change, first_line + step * num_deaths, traced=TRACED):
        check()
        num_deaths += 1
    check()
    return num_deaths


def main() -> None:
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written; this saves the time
    bundles = Path(sys.argv[1])
    names = version_names(bundles)
    live, before = names[-1], names[-2]

    def is_sound(allowed: set[str]) -> None:
        assert read_current(bundles) in allowed, read_current(bundles)
        left = version_names(bundles)
        assert {live, before} <= set(left) <= set(names)
        for name in left:
            verify_version(bundles / name)

    rollback_deaths = die_at_lines(lambda: roll_back(bundles, before), lambda: is_sound({live, before}))
    assert read_current(bundles) == before
    roll_back(bundles, live)
    prune_deaths = die_at_lines(lambda: prune(bundles, num_kept=1), lambda: is_sound({live}))
    assert version_names(bundles) == [before, live]
    assert not list(bundles.glob(".pruned-*")), "left-overs of the dead"
    sys.stdout.write(json.dumps({"rollback_deaths": rollback_deaths, "prune_deaths": prune_deaths}))


if __name__ == "__main__":
    main()
