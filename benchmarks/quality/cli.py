"""`re4 bench quality`: models × seeds beside plain baselines, on one data set, by one protocol.

Every variant is trained with every seed; epochs and alternatives are chosen on validation, the test split is
only reported. Finished runs go into a ledger, a line each, and are never made again: a study can be stopped,
and continued on another day and machine.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from re4.common.console import print_json, print_line
from re4.common.files import replacing, write_json

if TYPE_CHECKING:
    from re4.benchmarks.quality.ledger import Entry, Ledger
    from re4.training.config import TrainConfig
    from re4.training.data.dataset import Dataset


def quality(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A data set made by `re4 data prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones there are used again.")],
    variants: Annotated[
        str,
        typer.Option(
            help="What to train: models, each with settings of its own after colons, by commas. "
            "Of alternatives, `learning_rate=0.001|0.002`, the best on validation with seed 0 is taken."
        ),
    ] = "re4,comirec-sa,re4:num_interests=1",
    num_seeds: Annotated[int, typer.Option(help="Seeds 0, 1, … for each variant.", min=0)] = 5,
    ledger: Annotated[
        Path | None,
        typer.Option(help="File of finished runs, added to; a page is written beside it. OUT/ledger.jsonl"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare models with each other and with plain baselines, over several seeds.

    What is in the ledger is not trained again. With --num-seeds 0 nothing is trained: the table is made
    of what is there. Everything goes to quality.json in the folder as well.

    Example: re4 bench quality data/beauty --out runs/beauty --variants re4,re4:contrast_weight=0,comirec-sa
    """
    from re4.benchmarks.quality.ledger import Ledger
    from re4.benchmarks.quality.outcomes import markdown, outcomes_of, print_outcomes
    from re4.benchmarks.quality.trained import baseline_entries
    from re4.benchmarks.quality.variants import alternatives, variant_name
    from re4.training.data.dataset import Dataset

    asked = [alternatives(text) for text in variants.split(",")]
    dataset = Dataset.open(data)
    book = Ledger(ledger or out / "ledger.jsonl", dataset)
    entries = list(baseline_entries(book, dataset))
    choices = [[config.resolve(dataset.num_items) for config in choice] for choice in asked]
    reference = variant_name(choices[0][0].to_json(), dataset.num_items)
    if num_seeds:
        # Texts that come to the same settings are one variant.
        chosen = dict.fromkeys(_chosen(book, dataset, choice, out) for choice in choices)
        runs = [_trained(book, dataset, config, range(num_seeds), out) for config in chosen]
        reference = runs[0][0].variant
        entries += [entry for of_variant in runs for entry in of_variant]
    outcomes = outcomes_of(book, entries if num_seeds else book.entries, reference)
    report = {
        "dataset": data.name,
        "num_users": dataset.test.num_users,
        "reference": reference,
        "outcomes": outcomes,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "quality.json", report)
    with replacing(book.path.with_suffix(".md")) as part:
        part.write_text(markdown(data.name, outcomes_of(book, book.entries, reference)), encoding="utf-8")
    if as_json:
        print_json(report)
    else:
        print_outcomes(data.name, outcomes)


def _chosen(book: "Ledger", dataset: "Dataset", choice: "list[TrainConfig]", out: Path) -> "TrainConfig":
    """Give the alternative with the best validation Recall@50 with seed 0."""
    if len(choice) == 1:
        return choice[0]
    entries = [_trained(book, dataset, config, range(1), out)[0] for config in choice]
    recalls = [entry.valid["recall_50"] for entry in entries]
    best = recalls.index(max(recalls))
    print_line(f"{entries[best].variant}: the best of {len(choice)} on validation, {recalls[best]:.4f}")
    return choice[best]


def _trained(
    book: "Ledger", dataset: "Dataset", config: "TrainConfig", seeds: range, out: Path
) -> "list[Entry]":
    from re4.benchmarks.quality.trained import trained_entry

    return [trained_entry(book, dataset, replace(config, seed=seed), out) for seed in seeds]
