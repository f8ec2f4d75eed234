"""Models × seeds and baselines on one data set, by one protocol; the results accumulate in a ledger."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from re4.benchmarks.common.report import write_report
from re4.benchmarks.quality.entries import baseline_entries, rival_entry, trained_entry
from re4.benchmarks.quality.ledger import Entry, Ledger, alternatives, split_variants, variant_name
from re4.benchmarks.quality.options import QualityOptions
from re4.benchmarks.quality.rivals import check_rivals
from re4.benchmarks.quality.summary import render_markdown, summarise_entries, verdict
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset

_log = logging.getLogger(__name__)


def run(options: QualityOptions) -> dict[str, Any]:
    """Train what the ledger lacks, write `quality.json` and the ledger's page, and return the report."""
    configs = [alternatives(text) for text in split_variants(options.variants)]
    dataset = Dataset.open(options.data)
    ledger = Ledger(options.ledger or options.out / "ledger.jsonl", dataset)
    rivals = [name for name in options.rivals.split(",") if name]
    check_rivals(rivals)
    baseline_entries(ledger, dataset)
    for name in rivals:
        rival_entry(ledger, dataset, name)
    entries = ledger.baselines()

    def trained(config: TrainConfig, seeds: Iterable[int]) -> list[Entry]:
        return [trained_entry(ledger, dataset, replace(config, seed=seed), options.out) for seed in seeds]

    def best(choice: list[TrainConfig]) -> TrainConfig:
        """Return the alternative with the best validation Recall@50 with seed 0."""
        if len(choice) == 1:
            return choice[0]
        firsts = [trained(config, [0])[0] for config in choice]
        recalls = [entry.valid["recall_50"] for entry in firsts]
        place = recalls.index(max(recalls))
        _log.info(f"{firsts[place].variant}: best of {len(choice)} on validation, {recalls[place]:.4f}")
        return choice[place]

    facts = dataset.num_items, dataset.events_per_user
    choices = [[config.resolve(*facts) for config in choice] for choice in configs]
    reference = variant_name(choices[0][0].to_json(), *facts)
    if options.num_seeds:
        # Texts that mean the same settings are one variant.
        runs = [trained(each, range(options.num_seeds)) for each in dict.fromkeys(map(best, choices))]
        reference = runs[0][0].variant
        entries += [entry for of_variant in runs for entry in of_variant]
    else:
        entries = ledger.entries
    report = {
        "dataset": options.data.name,
        "num_users": dataset.test.num_users,
        "reference": reference,
        "outcomes": summarise_entries(ledger, entries, reference),
        "verdict": verdict(ledger, entries),
    }
    page = render_markdown(
        options.data.name,
        summarise_entries(ledger, ledger.entries, reference),
        verdict(ledger, ledger.entries),
    )
    write_report(options.out, {"quality.json": report})
    write_report(ledger.path.parent, {ledger.path.with_suffix(".md").name: page})
    return report
