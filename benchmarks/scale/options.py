"""Options of `re4 bench scale`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.settings.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """The catalogue, and how it is built."""

    work: Path = setting(MISSING, "Folder for the catalogue and the versions: about 1 KB an item at D = 64.")
    num_items: int = setting(1_000_000, "Size of the synthetic catalogue.", low=1)
    embedding_dim: int = setting(64, "D, width of its vectors.", low=2)
    index: str = setting("auto", "As for re4 export.")
    recall: float = setting(0.95, "As for re4 export.")
    num_candidates: int = setting(100, "As for re4 export.")
    memory_limit: str | None = setting(None, "As for re4 export.")
    seed: int = setting(0, "The same seed gives the same catalogue.")
    out: Path = setting(Path("bench-scale"), "Folder for scale.json and scale.md.")

    def __post_init__(self) -> None:
        check(self)
