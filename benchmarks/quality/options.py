"""Options of `re4 bench quality`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from re4.settings.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """What to train, and where."""

    data: Path
    out: Path = setting(MISSING, "Folder of the runs; finished ones in it are used again.")
    variants: str = setting(
        "re4,re4:num_interests=1,transformer,comirec-sa",
        "What to train: models, each with settings of its own after colons, separated by commas. Of "
        "alternatives, `learning_rate=0.001|0.002`, the best on validation with seed 0 is taken.",
    )
    rivals: str = setting(
        "",
        "Models of other libraries to compare with, separated by commas: ials, slim (extra rivals); "
        "sasrec, esasrec (RecTools, by `make peers`).",
    )
    num_seeds: int = setting(5, "Seeds 0, 1, … for each variant.", low=0)
    ledger: Path | None = setting(
        None, "File of finished runs, added to; a page is written beside it.", default_text="OUT/ledger.jsonl"
    )

    def __post_init__(self) -> None:
        check(self)
