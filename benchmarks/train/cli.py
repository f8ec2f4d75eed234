"""The subcommand `re4 bench train`."""

from typing import Any

from re4.benchmarks.common.options import PANEL, AsJson
from re4.benchmarks.train.options import TrainOptions
from re4.common.console import print_json, table
from re4.settings.fields import construct
from re4.settings.options import with_options


@with_options(TrainOptions, PANEL)
def train(as_json: AsJson = False, **given: Any) -> None:
    """Measure training steps, and their share of the speed that the arithmetic alone would allow.

    Example: re4 bench train --preset authors --num-items 367982 --against textbook --json
    """
    options = construct(TrainOptions, given)
    from re4.benchmarks.train.measure import measure

    result = {"preset": options.preset, **measure(options)}
    if as_json:
        print_json(result)
        return
    if textbook := result.pop("textbook"):
        result |= {f"textbook {name}": value for name, value in textbook.items()}
    rows = [
        [name.replace("_", " "), f"{value:,.3g}" if isinstance(value, float) else f"{value:,}"]
        for name, value in result.items()
        if name not in ("preset", "precision") and value is not None
    ]
    table(f"training steps, preset {options.preset}, {result['precision']}", ["", "figure"], rows)
