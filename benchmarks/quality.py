"""`re4 bench quality`: models × seeds beside plain baselines, on one data set, by one protocol.

Every variant is trained with every seed; epochs are chosen on validation, the test split is only reported.
The table gives means with 95 % intervals over seeds, and for each variant the difference from the first one,
paired by user (each user's metric is averaged over the seeds first). The history is left in the lists, as
ComiRec's protocol has it, and taken out, as a server asked to would.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.intervals import half_width
from re4.console import print_json, say, table
from re4.errors import UsageError
from re4.files import write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from training.data.dataset import Dataset
    from training.evaluation import Ranking

METRICS = ("recall_20", "recall_50", "hit_rate_20", "hit_rate_50", "ndcg_20", "ndcg_50")
_SHOWN = ("recall_20", "recall_50", "ndcg_20", "ndcg_50")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """One line of the table: a variant or a baseline, with the history left in or out."""

    name: str
    is_history_excluded: bool
    by_seed: list[dict[str, float]]
    """Means over users, coverage and cosine, for each seed."""
    by_user: "dict[str, NDArray[np.float64]]"
    """Each user's metrics, averaged over seeds."""


def quality(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A data set made by `re4 data prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones there are used again.")],
    variants: Annotated[
        str,
        typer.Option(help="What to train: models, each with settings of its own after colons, by commas."),
    ] = "re4,comirec-sa,re4:num_interests=1",
    num_seeds: Annotated[int, typer.Option(help="Seeds 0, 1, … for each variant.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare models with each other and with plain baselines, over several seeds.

    Everything goes to quality.json in the folder as well.

    Example: re4 bench quality data/beauty --out runs/beauty --variants re4,re4:contrast_weight=0,comirec-sa
    """
    from benchmarks.baselines import fit_baselines, rank_baseline
    from training.data.dataset import Dataset

    dataset = Dataset.open(data)
    settings = {name: parse_variant(name) for name in variants.split(",")}
    outcomes = []
    say("fitting the baselines …")
    for name, baseline in fit_baselines(dataset.train, dataset.valid, dataset.num_items).items():
        for excluded in (False, True):
            ranking = rank_baseline(baseline, dataset.test, dataset.num_items, exclude_history=excluded)
            outcomes.append(_outcome(name, dataset, [ranking], is_history_excluded=excluded))
    for name, values in settings.items():
        rankings = [_train_and_rank(dataset, values, seed, out / _folder(name)) for seed in range(num_seeds)]
        for excluded in (False, True):
            of_mode = [ranking[excluded] for ranking in rankings]
            outcomes.append(_outcome(name, dataset, of_mode, is_history_excluded=excluded))
    report = [_summary(outcome, _reference(outcomes, outcome, next(iter(settings)))) for outcome in outcomes]
    result = {"dataset": str(data), "num_seeds": num_seeds, "num_users": dataset.test.num_users}
    write_json(out / "quality.json", {**result, "outcomes": report})
    if as_json:
        print_json({**result, "outcomes": report})
    else:
        _print(report, data)


def parse_variant(text: str) -> dict[str, Any]:
    """Read `model:name=value:…` as settings of a training.

    Raises:
        UsageError: naming the part that is not of that form, or the setting that there is not.
    """
    from training.config import TrainConfig

    model, *pairs = text.split(":")
    values: dict[str, Any] = {"model": model}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
        if not sign or name not in TrainConfig().to_json():
            raise UsageError(f"--variants has {pair!r} in {text!r}; write model:setting=value, by commas.")
    TrainConfig(**values)
    return values


def _train_and_rank(
    dataset: "Dataset", values: dict[str, Any], seed: int, folder: Path
) -> "dict[bool, Ranking]":
    """Train unless the run is there, finished; rank the test users with the history left in and out."""
    from training.checkpoint import CHECKPOINT
    from training.config import TrainConfig
    from training.evaluation import rank
    from training.loop import resume, train
    from training.run import CONFIG, Run

    path = folder / f"seed-{seed}"
    if (path / CHECKPOINT).exists():
        resume(path, dataset)
    elif not (path / CONFIG).exists():
        say(f"{folder.name}, seed {seed}")
        train(dataset, TrainConfig(**values, seed=seed), path)
    run = Run.open(path)
    run.check_dataset(dataset)
    model = run.load_model()
    return {
        excluded: rank(model, dataset.test, exclude_history=excluded, title=f"{folder.name}, seed {seed}")
        for excluded in (False, True)
    }


def _outcome(
    name: str, dataset: "Dataset", rankings: "list[Ranking]", *, is_history_excluded: bool
) -> Outcome:
    import numpy as np

    from training.evaluation import judge, summarise

    judged = [judge(ranking.top_UM, dataset.test) for ranking in rankings]
    by_user = {}
    for metric in METRICS:
        kind, _, cut = metric.rpartition("_")
        by_user[metric] = np.mean([getattr(by_cut[int(cut)], f"{kind}_U") for by_cut in judged], axis=0)
    return Outcome(
        name=name,
        is_history_excluded=is_history_excluded,
        by_seed=[summarise(ranking, dataset.test, dataset.num_items).to_json() for ranking in rankings],
        by_user=by_user,
    )


def _reference(outcomes: list[Outcome], outcome: Outcome, name: str) -> Outcome:
    same_mode = (each for each in outcomes if each.is_history_excluded == outcome.is_history_excluded)
    return next(each for each in same_mode if each.name == name)


def _summary(outcome: Outcome, reference: Outcome) -> dict[str, Any]:
    """Means over seeds with half-widths of their 95 % intervals; differences from the reference, by user."""
    import numpy as np

    metrics = {}
    for metric in METRICS:
        values = [seed[metric] for seed in outcome.by_seed]
        difference_U = outcome.by_user[metric] - reference.by_user[metric]
        metrics[metric] = {
            "mean": float(np.mean(values)),
            "half_width_over_seeds": half_width(values),
            "difference": float(difference_U.mean()),
            "difference_half_width": half_width(difference_U.tolist()),
        }
    return {
        "name": outcome.name,
        "is_history_excluded": outcome.is_history_excluded,
        "num_seeds": len(outcome.by_seed),
        "metrics": metrics,
        "coverage_50": float(np.mean([seed["coverage_50"] for seed in outcome.by_seed])),
        "interest_cosine": float(np.mean([seed["interest_cosine"] for seed in outcome.by_seed])),
    }


def _folder(variant: str) -> str:
    return variant.replace(":", "-").replace("=", "-")


def _print(report: list[dict[str, Any]], data: Path) -> None:
    for excluded in (False, True):
        rows = []
        for outcome in report:
            if outcome["is_history_excluded"] != excluded:
                continue
            cells = [outcome["name"]]
            for metric in _SHOWN:
                figures = outcome["metrics"][metric]
                width = figures["half_width_over_seeds"]
                cells.append(f"{figures['mean']:.4f}" + ("" if width is None else f" ±{width:.4f}"))
            recall = outcome["metrics"]["recall_50"]
            cells.append(f"{recall['difference']:+.4f} ±{recall['difference_half_width']:.4f}")
            rows.append([*cells, f"{outcome['coverage_50']:.3f}", f"{outcome['interest_cosine']:.3f}"])
        table(
            f"{data} · test · history {'left out' if excluded else 'left in'}",
            ["", "Recall@20", "@50", "NDCG@20", "@50", "Δ Recall@50, by user", "coverage", "cosine"],
            rows,
        )
