"""Warm against cold training, day after day: `python -m re4.benchmarks.quality.daily_training --out FOLDER`.

The first day has half of a log's events, each later day an equal part of the rest more. Every day the log
so far is prepared, and trained on twice: cold, and from the warm run of the day before (the first day
has one training). Both are evaluated on the same test users, which no run of the chain was trained on; so
is the run of the day before. Finished runs are not trained again. Results go to daily_training.json.
Intervals are over users, paired, each user's recall averaged over the seeds first.

Legend: S seeds, U users, N items.
"""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from numpy.typing import NDArray

from re4.benchmarks.common.confidence import half_width
from re4.benchmarks.common.report import page_table
from re4.common.console import print_line
from re4.common.files import write_json
from re4.training import api
from re4.training.data.dataset import Dataset
from re4.training.data.prepare import prepare_data
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.protocol import recall_50_U
from re4.training.evaluation.run_evaluation import match_items, rank_matched
from re4.training.run.run import Run
from re4.training.run.trained_on import unseen_users

_DAY_S = 86_400
_CLUSTER_ITEMS = 30


def drifting_log(num_users: int, num_days: int, seed: int = 0) -> pl.DataFrame:
    """Generate a log in which tastes change and items age: `user`, `item`, `timestamp` by time.

    A user likes two of 40 clusters of 30 items and replaces one of them on a third of the days. A fifth of
    the items are released on each day but the first one; the chance of an item halves each day of its age.
    """
    rng = np.random.default_rng(seed)
    num_clusters = 40
    released_N = np.maximum(0, rng.integers(-num_days, num_days, num_clusters * _CLUSTER_ITEMS))
    skew_N = rng.pareto(1.5, len(released_N)) + 0.1
    tastes_U2 = rng.integers(0, num_clusters, (num_users, 2))
    parts = []
    for day in range(num_days):
        changed_U = np.flatnonzero(rng.random(num_users) < 1 / 3)
        tastes_U2[changed_U, rng.integers(0, 2, len(changed_U))] = rng.integers(
            0, num_clusters, len(changed_U)
        )
        weights_N = np.where(released_N <= day, skew_N * 0.5 ** (day - released_N), 0)
        chances_CN = weights_N.reshape(num_clusters, _CLUSTER_ITEMS).cumsum(axis=1)
        users_E = np.repeat(np.arange(num_users), rng.integers(0, 8, num_users))
        clusters_E = tastes_U2[users_E, rng.integers(0, 2, len(users_E))]
        drawn_E = rng.random(len(users_E)) * chances_CN[clusters_E, -1]
        places_E = (chances_CN[clusters_E] < drawn_E[:, None]).sum(axis=1)
        seconds_E = 1_700_000_000 + day * _DAY_S + rng.integers(0, _DAY_S, len(users_E))
        items_E = clusters_E * _CLUSTER_ITEMS + places_E
        parts.append(pl.DataFrame({"user": users_E, "item": items_E, "timestamp": seconds_E}))
    return pl.concat(parts).sort("timestamp", maintain_order=True)


def prepare_day(log: pl.DataFrame, day: int, num_days: int, out: Path) -> Dataset:
    """Prepare the log as it is on a day, from 1; the log is sorted by time."""
    share = 1.0 if num_days == 1 else 0.5 + 0.5 * (day - 1) / (num_days - 1)
    return Dataset.open(out) if out.exists() else prepare_data(log.head(int(share * len(log))), out)


def train_once(data: Dataset, out: Path, from_run: Path | None, settings: dict[str, Any]) -> Run:
    """Train, unless the run is there; its CPU time is kept beside it. An unfinished run is begun anew."""
    if not (out / "config.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        started = time.process_time()
        api.train(data, out, from_run=from_run, device="cpu", **settings)
        write_json(_cpu_file(out), {"cpu_s": round(time.process_time() - started, 2)})
    return Run.open(out)


def run_study(
    log: pl.DataFrame, out: Path, num_days: int, settings: dict[str, Any], num_seeds: int = 1
) -> list[dict[str, Any]]:
    """Run the whole study; return a record for each day, over all seeds."""
    records = []
    before: list[Run | None] = [None] * num_seeds
    for day in range(1, num_days + 1):
        data = prepare_day(log, day, num_days, out / f"data-{day}")
        cold_runs, warm_runs = [], []
        for seed, earlier in enumerate(before):
            own = {**settings, "seed": seed}
            cold_runs.append(train_once(data, out / f"cold-{day}-{seed}", None, own))
            warm_runs.append(
                cold_runs[-1]
                if earlier is None
                else train_once(data, out / f"warm-{day}-{seed}", earlier.path, own)
            )
        cold_SU, warm_SU = (
            np.stack([_recalls(run, data) for run in runs]) for runs in (cold_runs, warm_runs)
        )
        stale_SU = np.stack(
            [_recalls(run, data) for run in before if run is not None] or [warm_SU[0] * np.nan]
        )
        records.append(
            {
                "day": day,
                "num_items": data.num_items,
                "num_users": data.test.num_users,
                "cold": _figures(cold_runs, cold_SU),
                "warm": _figures(warm_runs, warm_SU),
                "warm_minus_cold": None if day == 1 else asdict(_paired(warm_SU, cold_SU)),
                "warm_minus_day_before": None if day == 1 else asdict(_paired(warm_SU, stale_SU)),
            }
        )
        before = list(warm_runs)
    return records


def _recalls(run: Run, data: Dataset) -> NDArray[np.float64]:
    """Return the Recall@50 of each test user, none of whom the run or its chain was trained on."""
    earlier = run.trained_on()[1:] if run.is_trained_on(data) else run.trained_on()
    unseen = unseen_users(earlier, data, "test")
    assert not unseen.num_seen, "the hash keeps every user in its part"
    assert not unseen.unknown
    rows_N = match_items(data, run)
    ranking = rank_matched(run, rows_N, data.test, exclude_history=False, title=str(run.path))
    return recall_50_U(ranking, data.test)


def _paired(ours_SU: NDArray[np.float64], theirs_SU: NDArray[np.float64]) -> Interval:
    """Return the difference, paired by user, each user's recall averaged over the seeds first."""
    return Interval.of(ours_SU.mean(axis=0) - theirs_SU.mean(axis=0))


def _figures(runs: list[Run], recalls_SU: NDArray[np.float64]) -> dict[str, Any]:
    by_seed = recalls_SU.mean(axis=1).tolist()
    return {
        "recall_50": float(np.mean(by_seed)),
        "half_width_over_seeds": half_width(by_seed),
        "best_epoch": float(np.mean([run.best_epoch for run in runs])),
        "num_epochs": float(np.mean([run.metrics()[-1]["epoch"] for run in runs])),
        "cpu_s": float(np.mean([_cpu_s(run.path) for run in runs])),
    }


def _cpu_file(run: Path) -> Path:
    return run.with_name(f"{run.name}.cpu.json")


def _cpu_s(run: Path) -> float:
    return float(json.loads(_cpu_file(run).read_text("utf-8"))["cpu_s"])


def _row(record: dict[str, Any]) -> list[str]:
    def signed(interval: dict[str, float] | None) -> str:
        if interval is None:
            return ""
        return f"{interval['mean']:+.3f} ({interval['low']:+.3f} to {interval['high']:+.3f})"

    def cost(figures: dict[str, float]) -> str:
        return f"{figures['best_epoch']:.1f} of {figures['num_epochs']:.1f}, {figures['cpu_s']:.0f} s"

    cold, warm = record["cold"], record["warm"]
    return [
        str(record["day"]),
        f"{record['num_users']:,}",
        f"{cold['recall_50']:.3f}",
        f"{warm['recall_50']:.3f}",
        signed(record["warm_minus_cold"]),
        signed(record["warm_minus_day_before"]),
        cost(cold),
        cost(warm) if record["day"] > 1 else "",
    ]


def main(
    out: Annotated[Path, typer.Option(help="Folder of data sets, runs and the report.")],
    events: Annotated[
        Path | None, typer.Option(help="csv or parquet with user, item, timestamp. Default: a generated log.")
    ] = None,
    num_users: Annotated[int, typer.Option(help="Users of the generated log.")] = 3_000,
    num_days: Annotated[int, typer.Option(help="Days.", min=1)] = 5,
    num_seeds: Annotated[int, typer.Option(help="Seeds 0, 1, … of every training.", min=1)] = 5,
    num_epochs: Annotated[int, typer.Option(help="Most epochs of a training.")] = 15,
    patience: Annotated[int, typer.Option(help="Epochs without a better one before it stops.")] = 3,
    num_interests: Annotated[int | None, typer.Option(help="Default: the model's own.")] = None,
) -> None:
    """Compare warm with cold training over several days."""
    if events is None:
        log = drifting_log(num_users, 2 * num_days)
    else:
        log = pl.read_parquet(events) if events.suffix == ".parquet" else pl.read_csv(events)
        log = log.select("user", "item", "timestamp").sort("timestamp", maintain_order=True)
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": "re4",
        "num_epochs": num_epochs,
        "patience": patience,
        "num_interests": num_interests,
    }
    records = run_study(log, out, num_days, settings, num_seeds)
    write_json(out / "daily_training.json", {"settings": settings, "num_seeds": num_seeds, "days": records})
    headings = ["day", "test users", "cold R@50", "warm R@50", "warm − cold", "warm − run of the day before"]
    headings += ["cold: best epoch, CPU time", "warm: best epoch, CPU time"]
    print_line(page_table(headings, [_row(record) for record in records]))


if __name__ == "__main__":
    typer.run(main)
