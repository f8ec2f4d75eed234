"""Warm against cold training, day after day: `python -m re4.benchmarks.quality.daily_training --out FOLDER`.

The first day has half of a log's events, each later day an equal part of the rest more. Every day the log
so far is prepared, and trained on twice: cold, and from the warm run of the day before (the first day
has one training). Both are evaluated on the same test users, which no run of the chain was trained on; so
is the run of the day before. Finished runs are not trained again. Results go to daily_training.json.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer

from re4.benchmarks.common.report import page_table
from re4.common.console import print_line
from re4.common.files import write_json
from re4.training import api
from re4.training.data.dataset import Dataset
from re4.training.data.prepare import prepare_data
from re4.training.run.run import Run

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
    """Train, unless the run is there."""
    if not (out / "config.json").exists():
        api.train(data, out, from_run=from_run, device="cpu", **settings)
    return Run.open(out)


def run_study(log: pl.DataFrame, out: Path, num_days: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the whole study; return a record for each day."""
    records = []
    before: Run | None = None
    for day in range(1, num_days + 1):
        data = prepare_day(log, day, num_days, out / f"data-{day}")
        cold = train_once(data, out / f"cold-{day}", None, settings)
        warm = cold if before is None else train_once(data, out / f"warm-{day}", before.path, settings)
        compared = api.evaluate(warm.path, against=cold.path, data=data)
        stale = None if before is None else api.evaluate(warm.path, against=before.path, data=data)
        assert compared.num_users_left_out == 0, "the hash keeps every user in its part"
        records.append(
            {
                "day": day,
                "num_items": data.num_items,
                "num_users": compared.num_users,
                "cold": _figures(cold, compared.against),
                "warm": _figures(warm, compared),
                "warm_minus_cold": _recall(compared),
                "warm_minus_day_before": None if stale is None else _recall(stale),
            }
        )
        before = warm
    return records


def _recall(compared: Any) -> dict[str, float]:
    interval = compared.difference["recall_50"]
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _figures(run: Run, evaluation: Any) -> dict[str, float]:
    epochs = run.metrics()
    return {
        "recall_50": evaluation.recall_50,
        "ndcg_50": evaluation.ndcg_50,
        "num_epochs": epochs[-1]["epoch"],
        "best_epoch": run.best_epoch,
        "training_s": round(sum(epoch["seconds"] for epoch in epochs), 1),
    }


def _row(record: dict[str, Any]) -> list[str]:
    def signed(interval: dict[str, float] | None) -> str:
        if interval is None or interval["low"] == interval["high"]:
            return ""
        return f"{interval['mean']:+.3f} ({interval['low']:+.3f} to {interval['high']:+.3f})"

    cold, warm = record["cold"], record["warm"]
    return [
        str(record["day"]),
        f"{record['num_users']:,}",
        f"{cold['recall_50']:.3f}",
        f"{warm['recall_50']:.3f}",
        signed(record["warm_minus_cold"]),
        signed(record["warm_minus_day_before"]),
        f"{cold['best_epoch']} of {cold['num_epochs']}, {cold['training_s']:.0f} s",
        f"{warm['best_epoch']} of {warm['num_epochs']}, {warm['training_s']:.0f} s",
    ]


def main(
    out: Annotated[Path, typer.Option(help="Folder of data sets, runs and the report.")],
    events: Annotated[
        Path | None, typer.Option(help="csv or parquet with user, item, timestamp. Default: a generated log.")
    ] = None,
    num_users: Annotated[int, typer.Option(help="Users of the generated log.")] = 3_000,
    num_days: Annotated[int, typer.Option(help="Days.", min=1)] = 5,
    num_epochs: Annotated[int, typer.Option(help="Most epochs of a training.")] = 15,
    patience: Annotated[int, typer.Option(help="Epochs without a better one before it stops.")] = 3,
) -> None:
    """Compare warm with cold training over several days."""
    if events is None:
        log = drifting_log(num_users, 2 * num_days)
    else:
        log = pl.read_parquet(events) if events.suffix == ".parquet" else pl.read_csv(events)
        log = log.select("user", "item", "timestamp").sort("timestamp", maintain_order=True)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    records = run_study(log, out, num_days, {"num_epochs": num_epochs, "patience": patience})
    write_json(out / "daily_training.json", {"seconds": time.perf_counter() - started, "days": records})
    headings = ["day", "test users", "cold R@50", "warm R@50", "warm − cold", "warm − run of the day before"]
    headings += ["cold: best epoch, time", "warm: best epoch, time"]
    print_line(page_table(headings, [_row(record) for record in records]))


if __name__ == "__main__":
    typer.run(main)
