"""One entry of the ledger: trained, or taken from a folder of finished runs, and judged on the test users."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from re4 import __version__
from re4.benchmarks.quality.ledger import PROTOCOLS, Entry, Judged, Ledger, pack_hits
from re4.benchmarks.quality.variants import variant_name
from re4.common.errors import RunError

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from re4.training.config import TrainConfig
    from re4.training.data.dataset import Dataset
    from re4.training.evaluation.protocol import Ranking


def trained_entry(ledger: Ledger, dataset: "Dataset", config: "TrainConfig", runs: Path) -> Entry:
    """Give the ledger's entry; where it has none, train or go on with the run in its folder, and judge it.

    Args:
        ledger: of the data set.
        dataset: what to train on.
        config: resolved.
        runs: the folder of the runs.

    Raises:
        RunError: the run in its folder has other settings.
    """
    from re4.training.evaluation.protocol import rank
    from re4.training.run.run import CONFIG, Run
    from re4.training.trainer.checkpoint import CHECKPOINT, read_facts
    from re4.training.trainer.loop import resume, train

    settings = {name: value for name, value in config.to_json().items() if name != "seed"}
    known = ledger.find(settings, config.seed)
    if known is not None:
        return known
    variant = variant_name(settings, dataset.num_items)
    title = f"{variant}, seed {config.seed}"
    path = runs / variant.replace(":", "-").replace("=", "-") / f"seed-{config.seed}"
    if (path / CHECKPOINT).exists():
        _check_settings(path, read_facts(path).config, config)
        resume(path, dataset)
    elif not (path / CONFIG).exists():
        _log.info(title)
        train(dataset, config, path)
    run = Run.open(path)
    _check_settings(path, run.config, config)
    run.check_dataset(dataset)
    model, epochs = run.load_model(), run.metrics()
    return ledger.add(
        Entry(
            kind="run",
            variant=variant,
            seed=config.seed,
            settings=settings,
            valid=rounded(run.evaluation()["valid"]),
            test={
                protocol: judged(
                    rank(model, dataset.test, exclude_history=protocol == "excluded", title=title), dataset
                )
                for protocol in PROTOCOLS
            },
            best_epoch=run.best_epoch,
            num_epochs=len(epochs),
            train_seconds=round(sum(epoch["seconds"] for epoch in epochs), 1),
            made_by=made_by(),
        )
    )


def _check_settings(path: Path, found: "TrainConfig", asked: "TrainConfig") -> None:
    if found != asked:
        raise RunError(f"{path} is a run with other settings, of an earlier study. Give another --out.")


def baseline_entries(ledger: Ledger, dataset: "Dataset") -> list[Entry]:
    """Give the ledger's baselines; where it has none, fit and judge them."""
    from re4.benchmarks.quality.baselines import fit_baselines, rank_baseline
    from re4.training.evaluation.protocol import summarise

    if ledger.baselines():
        return ledger.baselines()
    _log.info("fitting the baselines …")
    for name, (baseline, settings) in fit_baselines(dataset.train, dataset.valid, dataset.num_items).items():
        kept = rank_baseline(baseline, dataset.valid, dataset.num_items, exclude_history=False)
        test = {
            protocol: judged(
                rank_baseline(
                    baseline, dataset.test, dataset.num_items, exclude_history=protocol == "excluded"
                ),
                dataset,
            )
            for protocol in PROTOCOLS
        }
        valid = rounded(summarise(kept, dataset.valid, dataset.num_items).to_json())
        ledger.add(
            Entry(
                kind="baseline",
                variant=name,
                seed=None,
                settings=settings,
                valid=valid,
                test=test,
                made_by=made_by(),
            )
        )
    return ledger.baselines()


def judged(ranking: "Ranking", dataset: "Dataset") -> Judged:
    """Judge lists for the test users."""
    from re4.training.evaluation.protocol import summarise

    means = summarise(ranking, dataset.test, dataset.num_items)
    return Judged(
        hits=pack_hits(ranking.top_UM, dataset),
        coverage_50=round(means.coverage_50, 4),
        interest_cosine=round(means.interest_cosine, 4),
        metrics={
            name: value
            for name, value in rounded(means.to_json()).items()
            if name.startswith(("recall", "hit_rate", "ndcg"))
        },
    )


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Round for the file."""
    return {name: round(value, 5) for name, value in values.items()}


def made_by() -> dict[str, Any]:
    """Say which versions made an entry, and on what."""
    import torch

    from re4.benchmarks.common.machine import describe_machine

    machine = describe_machine()
    return {
        "re4": __version__,
        "torch": torch.__version__,
        "python": machine["python"],
        "cpu": machine["cpu_model"],
    }
