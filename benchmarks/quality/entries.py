"""Entries of the ledger: runs, trained or found finished in a folder, evaluated on the test users."""

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from re4 import __version__
from re4.benchmarks.common.machine import describe_machine
from re4.benchmarks.quality.ledger import PROTOCOLS, Entry, Ledger, TestResult, pack_hits, variant_name
from re4.benchmarks.quality.rivals import NAMES, fit_rival
from re4.common.errors import RunError
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.evaluation.baselines import fit_baselines, rank_baseline
from re4.training.evaluation.protocol import Evaluation, Ranking, rank, summarise
from re4.training.run.run import Run
from re4.training.run.run_folder import CONFIG
from re4.training.trainer.checkpoint import CHECKPOINT, read_facts
from re4.training.trainer.loop import resume, train

_log = logging.getLogger(__name__)


def trained_entry(ledger: Ledger, dataset: Dataset, config: TrainConfig, runs: Path) -> Entry:
    """Return the ledger's entry; where it has none, train or resume the run in its folder, and evaluate it.

    The settings are resolved ones.
    """
    settings = {name: value for name, value in config.to_json().items() if name != "seed"}
    if known := ledger.find(settings, config.seed):
        return known
    variant = variant_name(settings, dataset.num_items, dataset.events_per_user)
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
            valid=_rounded(run.evaluation()["valid"]),
            test=_test_results(dataset, functools.partial(rank, model, dataset.test, title=title)),
            best_epoch=run.best_epoch,
            num_epochs=epochs[-1]["epoch"],
            train_seconds=round(sum(epoch["seconds"] for epoch in epochs), 1),
            made_by=_made_by(),
        )
    )


def baseline_entries(ledger: Ledger, dataset: Dataset) -> list[Entry]:
    """Return the ledger's baselines; where it has none, fit and evaluate them."""
    if known := [entry for entry in ledger.baselines() if entry.variant not in NAMES]:
        return known
    _log.info("fitting the baselines …")
    for name, (baseline, settings) in fit_baselines(dataset.train, dataset.valid, dataset.num_items).items():
        kept = rank_baseline(baseline, dataset.valid, dataset.num_items, exclude_history=False)
        rank_test = functools.partial(rank_baseline, baseline, dataset.test, dataset.num_items)
        ledger.add(
            Entry(
                kind="baseline",
                variant=name,
                seed=None,
                settings=settings,
                valid=_rounded(summarise(kept, dataset.valid, dataset.num_items).to_json()),
                test=_test_results(dataset, rank_test),
                made_by=_made_by(),
            )
        )
    return ledger.baselines()


def rival_entry(ledger: Ledger, dataset: Dataset, name: str) -> Entry:
    """Return the ledger's entry of a rival; where it has none, fit, tune and evaluate the rival."""
    if known := next((entry for entry in ledger.baselines() if entry.variant == name), None):
        return known
    _log.info(f"fitting {name} …")
    started = time.perf_counter()
    rank_by, settings = fit_rival(name, dataset)
    seconds = time.perf_counter() - started
    kept = rank_by(dataset.valid, False)
    return ledger.add(
        Entry(
            kind="baseline",
            variant=name,
            seed=None,
            settings=settings,
            valid=_rounded(summarise(kept, dataset.valid, dataset.num_items).to_json()),
            test=_test_results(dataset, lambda *, exclude_history: rank_by(dataset.test, exclude_history)),
            train_seconds=round(seconds, 1),
            made_by=_made_by(),
        )
    )


def _check_settings(path: Path, found: TrainConfig, wanted: TrainConfig) -> None:
    if found != wanted:
        raise RunError(f"{path} is a run with other settings, of an earlier study. Give another --out.")


def _test_results(dataset: Dataset, rank_test: Callable[..., Ranking]) -> dict[str, TestResult]:
    """Evaluate lists for the test users by each protocol; `rank_test` takes `exclude_history`."""
    results = {}
    for protocol in PROTOCOLS:
        ranking = rank_test(exclude_history=protocol == "excluded")
        means = summarise(ranking, dataset.test, dataset.num_items)
        metrics = _rounded(means.to_json())
        kinds = ("recall", "hit_rate", "ndcg")
        results[protocol] = TestResult(
            hits=pack_hits(ranking.top_UM, dataset),
            coverage_50=round(means.coverage_50, 4),
            interest_cosine=round(means.interest_cosine, 4),
            interests=_interests(means),
            metrics={name: value for name, value in metrics.items() if name.startswith(kinds)},
        )
    return results


def _rounded(values: dict[str, Any]) -> dict[str, float]:
    """Return the means over users, rounded, without the figures about interests."""
    return {name: round(value, 5) for name, value in values.items() if name != "interests"}


def _interests(means: Evaluation) -> dict[str, Any] | None:
    """Return the figures about several interests, rounded; None for one interest."""
    figures = means.interests
    if figures is None or len(figures.hit_shares) == 1:
        return None
    values = asdict(figures)
    shares = [round(share, 4) for share in values.pop("hit_shares")]
    return {**{name: round(value, 4) for name, value in values.items()}, "hit_shares": shares}


def _made_by() -> dict[str, Any]:
    machine = describe_machine()
    versions = {"re4": __version__, "torch": torch.__version__}
    return {**versions, "python": machine["python"], "cpu": machine["cpu_model"]}
