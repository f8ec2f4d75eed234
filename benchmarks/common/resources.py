"""CPU time and memory of process trees, measured over a run."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Resources that some processes used over a run."""

    cpu_s: float
    """CPU seconds."""
    cores: float
    """CPU seconds per second."""
    memory_bytes: int
    """At the end, shared pages divided among the processes that share them (PSS). Where PSS may not be read
    it is resident memory: then shared pages count once for each process."""
    num_processes: int


class Meter:
    """Measures process trees from its making to `read`."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = list(pids)
        self._start = time.monotonic()
        self._before = self._cpu_seconds()

    @property
    def seconds(self) -> float:
        """Seconds since its making."""
        return max(time.monotonic() - self._start, 1e-9)

    def read(self) -> Usage | None:
        """Return the usage so far; None where none of the processes exists."""
        after = self._cpu_seconds()
        if not after:
            return None
        # A process that ended in between is left out, one that began is counted whole.
        used_s = sum(seconds - self._before.get(pid, 0.0) for pid, seconds in after.items())
        memory_bytes = 0
        for process in process_tree(self._pids):
            with contextlib.suppress(psutil.Error):
                memory_bytes += _memory_bytes(process)
        return Usage(
            cpu_s=used_s, cores=used_s / self.seconds, memory_bytes=memory_bytes, num_processes=len(after)
        )

    def _cpu_seconds(self) -> dict[int, float]:
        seconds = {}
        for process in process_tree(self._pids):
            with contextlib.suppress(psutil.Error):
                seconds[process.pid] = _cpu_s(process)
        return seconds


class OthersMeter:
    """Measures the CPU time of all other processes of the machine, from its making to `read`."""

    def __init__(self, pids: Sequence[int]) -> None:
        """Start measuring. The trees of these processes are left out, as this process is."""
        self._known = Meter(pids)
        self._own = psutil.Process()
        self._before = self._busy_s() - _cpu_s(self._own)

    def read(self) -> float:
        """Return the mean number of CPUs that others kept busy, or that the machine's host took away."""
        usage = self._known.read()
        others_s = self._busy_s() - _cpu_s(self._own) - self._before
        return max(0.0, others_s / self._known.seconds - (usage.cores if usage else 0.0))

    @staticmethod
    def _busy_s() -> float:
        times = psutil.cpu_times()
        return float(sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0))


def process_tree(pids: Sequence[int]) -> list[psutil.Process]:
    """Return these processes and all that they started, as far as they exist."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(found.values())


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _memory_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
