"""A clock of days that is moved while processes run: libfaketime, for one process and all its descendants.

It moves `time.time()`, `datetime.now()`, the time at which TLS judges certificates, and every other reading
of the wall clock. The monotonic clock, and so every timer, goes on as it is.
"""

import time
from importlib.util import find_spec
from pathlib import Path

_DAY_S = 86_400
_READ_EVERY_S = 1
"""How often a process reads the file with the day."""


class MovedClock:
    """The wall clock of the processes that were started with `environment`."""

    def __init__(self, file: Path) -> None:
        """Use the file for the present day; a file that is there already counts."""
        self._file = file
        self._started_s = time.monotonic() - time.time()
        if not file.exists():
            self.jump_to(0)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the processes."""
        package = find_spec("libfaketime")
        assert package is not None, "the development tools are not installed: make setup"
        assert package.submodule_search_locations is not None
        library = Path(package.submodule_search_locations[0]) / "vendor/libfaketime/src/libfaketime.so.1"
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": str(_READ_EVERY_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # unset, waits of threads for each other spin
            "FAKETIME_DISABLE_SHM": "1",  # a killed process would leave it
            "NO_FAKE_STAT": "1",  # a clock that is moved changes no time of a file
        }

    def move_to(self, day: int) -> None:
        """Go to a day, and wait until the clock of this process, which must be one of them, is there."""
        self.jump_to(day)
        until = time.monotonic() + 10 * _READ_EVERY_S
        while time.time() + self._started_s < time.monotonic() + (day - 0.5) * _DAY_S:
            assert time.monotonic() < until, "the clock does not move"
            time.sleep(0.05)

    def jump_to(self, day: int) -> None:
        """Go to a day, forward or back; each process follows within a second."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{day:+}d\n")
        new.replace(self._file)
