"""How long each stage of a job takes, and how much memory this process holds at most while it lasts.

Memory is read from Linux many times a second: *own* (anonymous pages, which nobody else can use), and
*mapped* (pages of files, which the kernel may take back at any time and shares between processes).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, process_time
from typing import Final

_SECONDS_BETWEEN: Final = 0.02
_STATUS: Final = Path("/proc/self/status")


@dataclass(kw_only=True)
class Stage:
    """One stage, finished or under way."""

    name: str
    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_own_bytes: int = 0
    peak_resident_bytes: int = 0
    """Own and mapped together."""


class Watch:
    """Stages one after another, watched by a thread."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._began = self._processor_began = 0.0
        self._over = threading.Event()

    def begin(self, name: str) -> None:
        """A stage begins, and with it the one before ends."""
        self.end()
        self._began, self._processor_began = monotonic(), process_time()
        self.stages.append(Stage(name=name))

    def note(self, text: str) -> None:
        """A part of a stage has begun or goes on: `STAGE, PART: how far`."""
        name = text.partition(":")[0]
        if not self.stages or self.stages[-1].name != name:
            self.begin(name)

    def end(self) -> None:
        """The last stage has ended."""
        if self.stages:
            self._look()
            self.stages[-1].seconds = monotonic() - self._began
            self.stages[-1].processor_seconds = process_time() - self._processor_began

    def _look(self) -> None:
        own, mapped = held_bytes()
        stage = self.stages[-1]
        stage.peak_own_bytes = max(stage.peak_own_bytes, own)
        stage.peak_resident_bytes = max(stage.peak_resident_bytes, own + mapped)

    def _keep_looking(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN):
            if self.stages:
                self._look()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look while the block runs."""
        thread = threading.Thread(target=self._keep_looking, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self.end()


def held_bytes() -> tuple[int, int]:
    """This process's own bytes and its mapped ones."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    own, file, shared = (int(fields[key].split()[0]) << 10 for key in ("RssAnon", "RssFile", "RssShmem"))
    return own, file + shared
