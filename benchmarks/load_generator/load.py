"""Loads: how many calls, when, for how long and by how many processes; and the arrival times that follow.

An *open* load sends on a schedule that the server cannot slow down, as independent users do. A *closed* load
has a fixed number of clients that wait for their answer before the next call: a server that stops also stops
them, so its pauses hardly show (coordinated omission).
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Arrivals: TypeAlias = Literal["poisson", "constant"]


@dataclass(frozen=True, kw_only=True)
class OpenLoad:
    """Calls at a fixed rate."""

    rate_per_s: float
    """Of all worker processes together."""
    arrivals: Arrivals
    """`poisson`: independent users; `constant`: equal distances."""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.rate_per_s:,.0f}/s"


@dataclass(frozen=True, kw_only=True)
class ClosedLoad:
    """A fixed number of clients, each waiting for its answer before it calls again."""

    concurrency: int
    """Of all worker processes together."""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.concurrency} waiting clients"


Load: TypeAlias = OpenLoad | ClosedLoad


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one run lasts."""

    warmup_s: float
    """Calls that fall into the first so many seconds are sent and not counted."""
    duration_s: float
    """Seconds that are counted."""
    deadline_s: float
    """A call without an answer so many seconds after its intended time has failed."""

    @property
    def sending_s(self) -> float:
        """Seconds from the first call to the last."""
        return self.warmup_s + self.duration_s


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Size of the client."""

    num_workers: int = 1
    """Processes. One offers a few thousand calls per second on a core of its own."""
    num_channels: int = 8
    """Connections of each process: the kernel deals connections, not calls, to a server's processes."""


def arrival_times(
    load: OpenLoad, seconds: float, *, worker: int, num_workers: int, seed: int
) -> NDArray[np.float64]:
    """Return one worker's share of the intended send times, in seconds from the start of the run.

    The shares together make up the load: Poisson processes add up to one, constant ones interleave.
    """
    share_per_s = load.rate_per_s / num_workers
    if load.arrivals == "constant":
        numbers = np.arange(int(np.ceil(seconds * share_per_s)) + 1, dtype=np.float64)
        times = (numbers + worker / num_workers) / share_per_s
        return times[times < seconds]
    rng = np.random.default_rng([seed, worker])
    # Given its number, the arrivals of a Poisson process are uniform and independent.
    return np.sort(rng.uniform(0.0, seconds, rng.poisson(share_per_s * seconds)))
