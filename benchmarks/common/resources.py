"""Processor time and memory of process trees, before and after a run. Knows process ids only."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import psutil


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What some processes used over a run."""

    cores: float
    """Processor seconds per second."""
    memory_bytes: int
    """Memory at the end, shared pages divided among those who share them. (Resident memory, where it is
    not allowed to look so closely: then shared pages count once for each process.)"""
    num_processes: int


class OthersMeter:
    """Measures, from its making to `read`, what everybody else on the machine computes."""

    def __init__(self, pids: Sequence[int]) -> None:
        """Start.

        Args:
            pids: First processes of those who are not others; this one is none either.
        """
        self._known = Meter(pids)
        self._own = psutil.Process()
        self._before = self._busy_s(), self._own_s()

    def read(self) -> float:
        """Processors that others kept busy, or that the machine's host took away, on average so far."""
        usage = self._known.read()
        seconds = max(self._known.seconds, 1e-9)
        busy_s, own_s = self._busy_s() - self._before[0], self._own_s() - self._before[1]
        return max(0.0, (busy_s - own_s) / seconds - (usage.cores if usage else 0.0))

    def _own_s(self) -> float:
        times = self._own.cpu_times()
        return float(times.user + times.system)

    @staticmethod
    def _busy_s() -> float:
        times = psutil.cpu_times()
        return float(sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0))


class Meter:
    """Measures from its making to `read`."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = list(pids)
        self._start = time.monotonic()
        self._before = self._cpu_seconds()

    @classmethod
    def of(cls, pids: Sequence[int] | None) -> Self | None:
        """A meter, or None where the processes are not known."""
        return cls(pids) if pids else None

    @property
    def seconds(self) -> float:
        """Since its making."""
        return time.monotonic() - self._start

    def read(self) -> Usage | None:
        """Usage so far; None where none of the processes is there any more."""
        after = self._cpu_seconds()
        if not after:
            return None
        # A process that ended in between is left out, one that began is counted whole.
        used_s = sum(seconds - self._before.get(pid, 0.0) for pid, seconds in after.items())
        memory_bytes = 0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                memory_bytes += _memory_bytes(process)
        return Usage(
            cores=used_s / max(self.seconds, 1e-9),
            memory_bytes=memory_bytes,
            num_processes=len(after),
        )

    def _processes(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for pid in self._pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
        return list(found.values())

    def _cpu_seconds(self) -> dict[int, float]:
        seconds = {}
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
        return seconds


def _memory_bytes(process: psutil.Process) -> int:
    try:
        shared_out: int = process.memory_full_info().pss
    except psutil.AccessDenied:
        resident: int = process.memory_info().rss
        return resident
    return shared_out
