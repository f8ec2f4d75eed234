"""The options of `re4 bench live`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.benchmarks.common.options import BUNDLES, DATA
from re4.common.errors import UsageError
from re4.settings.fields import check, setting

PARTS = ("events", "users")


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """What to measure, and how long."""

    bundles: Path = setting(MISSING, BUNDLES)
    data: Path | None = setting(None, DATA, default_text="generated histories")
    parts: str = setting("events", f"Parts to measure, separated by commas: {', '.join(PARTS)}.")
    duration_s: float = setting(5.0, "Seconds of each phase of load.", low=0.1)
    num_rounds: int = setting(3, "Rounds of load with and without events, in turns.", low=1)
    rate: float = setting(100.0, "Retrieve calls a second during these rounds.", low=1)
    events_per_s: float = setting(5_000.0, "Events a second during these rounds.", low=1)
    call_events: int = setting(500, "Events of one RecordEvents call, for the throughput.", low=1)
    num_lone_calls: int = setting(300, "Calls of a single event, one after the other.", low=10)
    valkey: str | None = setting(
        None, "redis://HOST:PORT/DB of a server to measure too, with two servers of Re4.", default_text="none"
    )
    num_users: int = setting(1_000_000, "Part users: users to fill an embedded store with.", low=1)
    user_events: int = setting(50, "Part users: events of each.", low=1)
    seed: int = setting(0, "Of users and order.", low=0)
    out: Path = setting(Path("bench-live"), "Folder of the report.")

    def __post_init__(self) -> None:
        check(self)
        unknown = set(self.parts.split(",")) - set(PARTS)
        if unknown:
            raise UsageError(f"--parts {self.parts!r}: there is {', '.join(PARTS)}")
