"""The subcommand `re4 bench quality`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from re4.benchmarks.common.options import PANEL, AsJson
from re4.benchmarks.quality.options import QualityOptions
from re4.common.console import print_json
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(QualityOptions, PANEL)
def quality(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A data set made by `re4 data prepare`.")],
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Compare models with each other and with baselines, over several seeds.

    Every variant is trained with every seed; epochs and alternatives are chosen on validation, the test split
    is only reported. Finished runs go into a ledger and are not trained again, so a study can be stopped, and
    continued on another day and machine. With --num-seeds 0 nothing is trained: the table is made of the
    ledger. It ends with a sentence: the best model by validation, its lead, how sure it is, and its cost. The
    report is also written to quality.json in the folder.

    Example: re4 bench quality data/beauty --out runs/beauty --variants re4,re4:contrast_weight=0,comirec-sa
    """
    options = construct(QualityOptions, {**given, "data": data})
    from re4.training.data.layout import read_info

    read_info(data)  # a wrong path is reported before PyTorch is loaded
    from re4.benchmarks.quality.benchmark import run
    from re4.benchmarks.quality.summary import print_summary

    report = run(options)
    if as_json:
        print_json(report)
    else:
        print_summary(data.name, report["outcomes"], report["verdict"])
