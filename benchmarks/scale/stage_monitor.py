"""Time of each stage of a job, and the peak memory of this process while it lasts, sampled by a thread.

Memory is *own* (anonymous pages, which no other process can use) and *mapped* (pages of files, which the
kernel may take back at any time and shares between processes).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, process_time
from typing import Final

import psutil

_INTERVAL_S: Final = 0.02


@dataclass(kw_only=True)
class Stage:
    """One stage, finished or running."""

    name: str
    seconds: float = 0.0
    processor_seconds: float = 0.0
    """CPU time."""
    peak_own_bytes: int = 0
    peak_resident_bytes: int = 0
    """Own and mapped together."""


class StageMonitor:
    """Stages one after another."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._began = self._cpu_began = 0.0
        self._over = threading.Event()

    def begin(self, name: str) -> None:
        """Begin a stage, and end the one before."""
        self.end()
        self._began, self._cpu_began = monotonic(), process_time()
        self.stages.append(Stage(name=name))

    def note(self, text: str) -> None:
        """Begin or continue a part of a stage, from a progress text `STAGE, PART: figures`."""
        name = text.partition(":")[0]
        if not self.stages or self.stages[-1].name != name:
            self.begin(name)

    def end(self) -> None:
        """End the last stage."""
        if self.stages:
            self._sample()
            self.stages[-1].seconds = monotonic() - self._began
            self.stages[-1].processor_seconds = process_time() - self._cpu_began

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample memory while the block runs."""
        thread = threading.Thread(target=self._keep_sampling, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self.end()

    def _sample(self) -> None:
        own, mapped = resident_bytes()
        stage = self.stages[-1]
        stage.peak_own_bytes = max(stage.peak_own_bytes, own)
        stage.peak_resident_bytes = max(stage.peak_resident_bytes, own + mapped)

    def _keep_sampling(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            if self.stages:
                self._sample()


def resident_bytes() -> tuple[int, int]:
    """Return this process's own bytes and its mapped ones."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared, memory.shared
