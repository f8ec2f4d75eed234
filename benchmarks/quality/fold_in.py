"""Items that no training has seen, after 0, 1, 5, 20 and 100 events, by the rule that folds the events in.

    python -m re4.benchmarks.quality.fold_in DATA --out FOLDER --seeds 0,1,2 [--events events.csv --newest]

A tenth of the items is held out, drawn by the seed, or the newest. One model is trained without them, and
one with all of their events: the ceiling. Events come in the order of the log's times, or in a drawn one.
Each event brings the interests of its user, encoded from the history before it without held-out items. After
at most n events of each held-out item, both models rank the whole catalogue for the same test users.

Rows without a remark take the vectors as servers do. *Equal share* adds one constant to the scores of
held-out items. It is chosen on the validation users, so that the items hold the share of places that they
hold in the ceiling's lists. *45 + 5* joins the best 45 other items with the best five held-out ones.

Legend: N items, C held-out items, U users, K interests, D embedding, M places, E events of held-out items.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import numpy as np
import polars as pl
import typer
from numpy.typing import NDArray

from re4.benchmarks.common.confidence import half_width
from re4.benchmarks.common.report import page_table, write_report
from re4.benchmarks.quality.cold_items import (
    PLACES,
    Floats,
    Trained,
    Users,
    best_places,
    first_events,
    held_out_users,
    hold_out,
    read_records,
    regression,
    trained_pair,
    without,
)
from re4.bundle.cold_start import PRIOR_USERS, fold_in
from re4.bundle.fold_in import FoldInModel
from re4.common.console import print_line
from re4.common.files import replacing
from re4.exporting.catalogue.cold_start import scale_for_share
from re4.exporting.catalogue.fold_in import fold_in_model, num_users_for
from re4.training.data.dataset import Dataset
from re4.training.data.layout import SPLITS

NUMS_EVENTS: Final = (0, 1, 5, 20, 100)
RESERVED: Final = 5
BOUNDS: Final = (5, 10, 15, 25)
"""Most held-out items in a list …"""
BOUNDED_EVENTS: Final = 20
"""… after so many events."""
CEILING: Final = "trained with them (ceiling)"
ABSENT: Final = "not listed"
MEAN: Final = "mean of interests"
LIKELIHOOD: Final = "likelihood"
_MAX_SHARE: Final = 0.1
_MAX_OFFSET: Final = 20.0
_BISECTIONS: Final = 20
_WHITENING: Final = 20.0

Figures: TypeAlias = dict[str, float]


class Evidence(NamedTuple):
    """The first events of each held-out item."""

    sums_CD: NDArray[np.float64]
    """Summed interests."""
    unit_sums_CD: NDArray[np.float64]
    """Summed directions of interests."""
    num_C: NDArray[np.int64]
    num_others_C: NDArray[np.float64]
    """Events of all items from an item's first event to its last one."""


class Lists:
    """The places of one model's test and validation users, with any vectors of the held-out items."""

    def __init__(self, trained: Trained, splits: Mapping[str, Users], is_cold_N: NDArray[np.bool_]) -> None:
        """Rank the other items once."""
        self._splits, self._is_cold_N = splits, is_cold_N
        self.cold_rows = np.flatnonzero(is_cold_N)
        self._place_N = np.cumsum(is_cold_N) - 1
        is_listed_N = (trained.row_N >= 0) & ~is_cold_N
        self.interests = {name: trained.interests(users.histories) for name, users in splits.items()}
        self._others = {
            name: best_places(self.interests[name], trained.vectors_ND, users, is_listed_N)
            for name, users in splits.items()
        }

    def judge(
        self,
        vectors_CD: Floats | None,
        is_counted_C: NDArray[np.bool_],
        *,
        offset: float = 0.0,
        most: int = PLACES,
    ) -> Figures:
        """Return recalls of the test users with these vectors of held-out items; None lists none of them.

        Args:
            vectors_CD: The vectors.
            is_counted_C: The held-out items whose recall is the figure `reached`.
            offset: Added to their scores.
            most: Most held-out items in a list.
        """
        scores_UM, rows_UM = self._others["test"]
        lists_UM, reserved_UM = rows_UM, rows_UM
        if vectors_CD is not None:
            best_UM, cold_UM = self._best("test", vectors_CD)
            both_UM = np.concatenate([rows_UM, self.cold_rows[cold_UM[:, :most]]], axis=1)
            both_scores_UM = np.concatenate([scores_UM, best_UM[:, :most] + offset], axis=1)
            order = np.argsort(-both_scores_UM, axis=1, kind="stable")
            lists_UM = np.take_along_axis(both_UM, order[:, :PLACES], axis=1)
            reserved_UM = np.concatenate(
                [rows_UM[:, : PLACES - RESERVED], self.cold_rows[cold_UM[:, :RESERVED]]], axis=1
            )
        found: dict[str, list[float]] = {name: [] for name in ("cold", "reached", "warm", "all", "reserved")}
        for top_M, reserved_M, targets in zip(
            lists_UM, reserved_UM, self._splits["test"].targets, strict=True
        ):
            is_cold, is_found = self._is_cold_N[targets], np.isin(targets, top_M)
            is_reached = is_cold & is_counted_C[self._place_N[targets]]
            for name, chosen in (("cold", is_cold), ("reached", is_reached), ("warm", ~is_cold)):
                if chosen.any():
                    found[name].append(float(is_found[chosen].mean()))
            found["all"].append(float(is_found.mean()))
            found["reserved"].append(float(np.isin(targets, reserved_M).mean()))
        is_cold_UM = self._is_cold_N[lists_UM]
        return {
            **{name: fmean(values) if values else 0.0 for name, values in found.items()},
            "share": float(is_cold_UM.mean()),
            "listed": len(np.unique(lists_UM[is_cold_UM])) / len(self.cold_rows),
        }

    def share(self, vectors_CD: Floats, offset: float = 0.0) -> float:
        """Return the share of places of held-out items in the validation users' lists."""
        return self._share(self._best("valid", vectors_CD)[0] + offset)

    def offset_for(self, vectors_CD: Floats, share: float) -> float:
        """Return the constant with which held-out items have a share of the validation users' places."""
        best_UM, _ = self._best("valid", vectors_CD)
        low, high = -_MAX_OFFSET, _MAX_OFFSET
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._share(best_UM + middle) < share else (low, middle)
        return high

    def scaled(self, mean_D: Floats, vectors_CD: Floats, share: float) -> Floats:
        """Return the vectors with the scale of `scale_for_share`."""
        found = scale_for_share(
            self.interests["valid"],
            self._others["valid"][0],
            mean_D,
            np.ascontiguousarray(vectors_CD - mean_D),
            share=share,
            max_scale=50.0,
        )
        return np.asarray(mean_D + found.scale * (vectors_CD - mean_D), np.float32)

    def _best(self, split: str, vectors_CD: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """Return scores and positions of the best held-out items of each user."""
        scores_UC = (self.interests[split] @ vectors_CD.T).max(axis=1)
        order_UM = np.argsort(-scores_UC, axis=1, kind="stable")[:, :PLACES]
        return np.take_along_axis(scores_UC, order_UM, axis=1), order_UM

    def _share(self, best_UM: Floats) -> float:
        others_UM = self._others["valid"][0]
        both = np.concatenate([others_UM, best_UM], axis=1)
        return float((np.argsort(-both, axis=1, kind="stable")[:, :PLACES] >= PLACES).mean())


class EventLog:
    """The events of held-out items in their order, with the interests of their users."""

    def __init__(
        self,
        trained: Trained,
        dataset: Dataset,
        is_cold_N: NDArray[np.bool_],
        prior_CD: Floats,
        seed: int,
        events: Path | None,
    ) -> None:
        """Encode the users of the events; `events` has the times, None for a drawn order."""
        train = dataset.train
        users_E = np.repeat(np.arange(train.num_users), np.diff(train.offsets_U1))
        order = _order(dataset, users_E, seed, events)
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        place_N = np.cumsum(is_cold_N) - 1
        histories, owners, self._ranks_E = [], [], []
        for event in order[is_cold_N[train.items_E[order]]].tolist():
            before = train.items_E[train.offsets_U1[users_E[event]] : event].astype(np.int64)
            before = before[~is_cold_N[before]]
            if len(before):
                histories.append(before)
                owners.append(int(place_N[train.items_E[event]]))
                self._ranks_E.append(int(ranks[event]))
        self._owners_E = np.array(owners)
        self.interests_EKD = trained.interests(histories)
        self.scores_EK = np.einsum("ekd,ed->ek", self.interests_EKD, prior_CD[self._owners_E])
        self.nums_C = np.bincount(self._owners_E, minlength=len(prior_CD))

    def best(self) -> Floats:
        """Return the interest of each event's user that the item's first vector answers to."""
        return np.asarray(self.interests_EKD[np.arange(len(self._owners_E)), self.scores_EK.argmax(axis=1)])

    def weighted(self) -> Floats:
        """Return the interests of each event's user, weighted by the softmax of their scores."""
        weights_EK = np.exp(self.scores_EK - self.scores_EK.max(axis=1, keepdims=True))
        weights_EK /= weights_EK.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("ek,ekd->ed", weights_EK, self.interests_EKD))

    def evidence(self, num: int, interests_ED: Floats) -> Evidence:
        """Return the first `num` events of each item."""
        sums_CD = np.zeros((len(self.nums_C), interests_ED.shape[1]))
        units_CD = np.zeros_like(sums_CD)
        first_C, last_C = np.zeros(len(sums_CD)), np.zeros(len(sums_CD))
        num_C = np.zeros(len(sums_CD), np.int64)
        for owner, rank, interest_D in zip(self._owners_E, self._ranks_E, interests_ED, strict=True):
            if num_C[owner] < num:
                num_C[owner] += 1
                first_C[owner] = first_C[owner] if num_C[owner] > 1 else rank
                last_C[owner] = rank
                sums_CD[owner] += interest_D
                units_CD[owner] += interest_D / max(float(np.linalg.norm(interest_D)), 1e-12)
        return Evidence(sums_CD, units_CD, num_C, last_C - first_C)


def _order(dataset: Dataset, users_E: NDArray[np.int64], seed: int, events: Path | None) -> NDArray[np.int64]:
    """Return the training events in their order."""
    if events is None:
        return np.random.default_rng(seed).permutation(len(users_E))
    own = pl.DataFrame(
        {
            "user": dataset.users("train").cast(pl.String)[users_E],
            "item": dataset.items()["item_id"].cast(pl.String)[dataset.train.items_E.astype(np.int64)],
        }
    )
    columns = [pl.col("user").cast(pl.String), pl.col("item").cast(pl.String), pl.col("timestamp")]
    log = pl.read_csv(events).select(columns).unique(["user", "item"], keep="first", maintain_order=True)
    times = own.join(log, on=["user", "item"], how="left", maintain_order="left")["timestamp"]
    return np.asarray(times.fill_null(strategy="max").arg_sort().to_numpy(), np.int64)


def whitened(
    mean_D: Floats, prior_CD: Floats, evidence: Evidence, interests_ED: NDArray[np.float64]
) -> Floats:
    """Return the ridge regression of events on the users' interests: discriminant analysis with a prior."""
    centre_D, covariance_DD = interests_ED.mean(axis=0), np.cov(interests_ED.T)
    strength = _WHITENING * float(np.trace(covariance_DD)) / len(covariance_DD)
    identity = strength * np.eye(len(covariance_DD))
    vectors = [
        mean_D
        + np.linalg.solve(
            identity + num * covariance_DD, strength * (prior_D - mean_D) + sum_D - num * centre_D
        )
        for prior_D, sum_D, num in zip(prior_CD, evidence.sums_CD, evidence.num_C, strict=True)
    ]
    return np.array(vectors, np.float32)


def by_likelihoods(
    model: FoldInModel, prior_CD: Floats, log: EventLog, num: int, popularity: float
) -> dict[str, Floats]:
    """Return the vectors as servers make them, and with one thing changed each.

    Args:
        model: The fitted likelihood.
        prior_CD: Vectors from attributes.
        log: The events.
        num: Most events of an item.
        popularity: The mean share of a trained item in all events.
    """

    def vectors(evidence: Evidence, model: FoldInModel = model) -> Floats:
        entries = zip(prior_CD, evidence.sums_CD, evidence.num_C, evidence.num_others_C, strict=True)
        return np.stack(
            [
                model.vector(prior_D, sum_D, num_others) if num else prior_D
                for prior_D, sum_D, num, num_others in entries
            ]
        )

    best = log.evidence(num, log.best())
    length = float(np.linalg.norm(log.interests_EKD, axis=2).mean())
    found = {
        LIKELIHOOD: vectors(best),
        f"{LIKELIHOOD}, directions of interests": vectors(best._replace(sums_CD=length * best.unit_sums_CD)),
        f"{LIKELIHOOD}, half the shrinkage": vectors(
            best, replace(model, precision_DD=np.asarray(model.precision_DD / 2, np.float32))
        ),
        f"{LIKELIHOOD}, all equally popular": vectors(best._replace(num_others_C=best.num_C / popularity)),
    }
    if log.interests_EKD.shape[1] > 1:
        found[f"{LIKELIHOOD}, mean of a user's interests"] = vectors(
            log.evidence(num, log.interests_EKD.mean(axis=1))
        )
        found[f"{LIKELIHOOD}, interests by softmax"] = vectors(log.evidence(num, log.weighted()))
    return found


def run_seed(
    dataset: Dataset,
    out: Path,
    seed: int,
    settings: Mapping[str, Any],
    events: Path | None,
    *,
    is_newest: bool,
) -> dict[str, Any]:
    """Train the models of a seed unless they are there, and return the figures of all rows."""
    items, events_N = dataset.items(), dataset.item_counts()
    is_cold_N = hold_out(dataset, seed, first_events(events) if is_newest and events is not None else None)
    runs = trained_pair(dataset, without(dataset, is_cold_N, out / f"data-{seed}"), out, seed, settings)
    ours, ceiling = (Trained.of(each, items) for each in runs)
    splits: dict[str, Users] = {
        name: held_out_users(dataset.split(name), is_cold_N) for name in SPLITS if name != "train"
    }
    lists, of_ceiling = (Lists(each, splits, is_cold_N) for each in (ours, ceiling))
    cold_rows, warm_rows = lists.cold_rows, np.flatnonzero(ours.row_N >= 0)
    share = of_ceiling.share(ceiling.vectors_ND[cold_rows])

    mean_D, predicted_ND = regression(ours.vectors_ND, events_N, warm_rows, items)
    prior_CD = lists.scaled(mean_D, predicted_ND[cold_rows], min(_MAX_SHARE, len(cold_rows) / len(items)))
    scale = float(np.linalg.norm(prior_CD - mean_D) / np.linalg.norm(predicted_ND[cold_rows] - mean_D))
    scaled_ND = np.asarray(mean_D + scale * (predicted_ND - mean_D), np.float32)
    interests_UKD = lists.interests["valid"]
    users = interests_UKD[: num_users_for(interests_UKD.shape[1])]
    fitted = fold_in_model(
        ours.vectors_ND[warm_rows],
        scaled_ND[warm_rows],
        events_N[warm_rows],
        users,
        num_items=len(warm_rows),
    )
    log = EventLog(ours, dataset, is_cold_N, prior_CD, seed, events)
    norm = float(np.median(np.linalg.norm(ours.vectors_ND[warm_rows], axis=1)))
    flat_ED = interests_UKD.reshape(-1, interests_UKD.shape[2]).astype(np.float64)
    rows: dict[str, Figures] = {}

    for num in NUMS_EVENTS:
        is_counted_C = log.nums_C >= num
        rows[f"{num}: {CEILING}"] = of_ceiling.judge(ceiling.vectors_ND[cold_rows], is_counted_C)
        rows[f"{num}: {ABSENT}"] = lists.judge(None, is_counted_C)
        vectors = {"attributes alone": prior_CD}
        if num:
            best = log.evidence(num, log.best())
            vectors = {
                MEAN: fold_in(prior_CD, best.sums_CD, best.num_C, norm),
                **{
                    f"{MEAN}, {prior} users as prior": fold_in(
                        prior_CD, best.sums_CD, PRIOR_USERS / prior * best.num_C, norm
                    )
                    for prior in (5, 20)
                },
                "whitened interests": whitened(mean_D, predicted_ND[cold_rows], best, flat_ED),
            }
            if fitted.model is not None:
                popularity = events_N[warm_rows].mean() / events_N.sum()
                vectors |= by_likelihoods(fitted.model, prior_CD, log, num, popularity)
        for name, vectors_CD in vectors.items():
            rows[f"{num}: {name}"] = lists.judge(vectors_CD, is_counted_C)
            if num == BOUNDED_EVENTS and name in (MEAN, LIKELIHOOD):
                for most in BOUNDS:
                    rows[f"{num}: {name}, at most {most} of {PLACES}"] = lists.judge(
                        vectors_CD, is_counted_C, most=most
                    )
            rows[f"{num}: {name}, equal share"] = lists.judge(
                vectors_CD, is_counted_C, offset=lists.offset_for(vectors_CD, share)
            )
    return {
        "seed": seed,
        "settings": dict(settings),
        "num_items": dataset.num_items,
        "num_cold": len(cold_rows),
        "num_with_events": {str(num): int((log.nums_C >= num).sum()) for num in NUMS_EVENTS},
        "order": "drawn" if events is None else "by time",
        "held_out": "the newest" if is_newest else "drawn",
        "scale": scale,
        "slope": fitted.slope,
        "epochs": [each.best_epoch for each in runs],
        "rows": rows,
    }


def render_page(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a data set: means over seeds, with 95 % intervals of differences paired by seed."""
    table = []
    for row in dict.fromkeys(row for record in records for row in record["rows"]):
        own = [record["rows"][row] for record in records]
        num = row.split(":")[0]
        ceilings, absent = ([r["rows"][f"{num}: {each}"] for r in records] for each in (CEILING, ABSENT))
        table.append(
            [
                row,
                f"{fmean(each['cold'] for each in own):.3f}",
                _with_interval([e["cold"] / b["cold"] for e, b in zip(own, ceilings, strict=True)], 2),
                _ratio(own, ceilings),
                f"{100 * fmean(each['share'] for each in own):.1f} %",
                f"{100 * fmean(each['listed'] for each in own):.0f} %",
                _with_interval([e["warm"] - b["warm"] for e, b in zip(own, ceilings, strict=True)], 4, "+"),
                _with_interval([e["all"] - b["all"] for e, b in zip(own, absent, strict=True)], 4, "+"),
                _with_interval([e["reserved"] - b["all"] for e, b in zip(own, absent, strict=True)], 4, "+"),
            ]
        )
    headings = ["events: vectors of held-out items", "cold", "of the ceiling", "… items with n", "share"]
    headings += ["listed", "warm − ceiling", "all − not listed", "45 + 5 − not listed"]
    first = records[0]
    with_events = ", ".join(f"{num}: {count}" for num, count in first["num_with_events"].items())
    facts = (
        f"Seeds {', '.join(str(record['seed']) for record in records)}; {first['num_cold']:,} of "
        f"{first['num_items']:,} items held out, {first['held_out']}; events {first['order']}; items with n "
        f"events (first seed): {with_events}; settings {json.dumps(first['settings'])}."
    )
    return f"# Folding in: {name}\n\n{facts}\n\n{page_table(headings, table)}\n"


def _ratio(own: Sequence[Figures], ceilings: Sequence[Figures]) -> str:
    both = [(e["reached"], b["reached"]) for e, b in zip(own, ceilings, strict=True) if b["reached"]]
    return _with_interval([e / b for e, b in both], 2) if both else ""


def _with_interval(values: Sequence[float], digits: int, sign: str = "") -> str:
    half = half_width(values)
    return f"{fmean(values):{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def main(
    data: Annotated[Path, typer.Argument(help="A data set, made by `re4 data prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder of data sets and runs, as of the study of cold items.")],
    seeds: Annotated[str, typer.Option(help="Seeds to run, separated by commas.")] = "0,1,2,3,4",
    events: Annotated[
        Path | None,
        typer.Option(help="csv with user, item and timestamp: events by time. Default: a drawn order."),
    ] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="Hold out the newest items by their first event.")
    ] = False,
    ledger: Annotated[
        Path | None,
        typer.Option(help="File of finished seeds; the page is beside it. Default: in the folder."),
    ] = None,
    num_interests: Annotated[int, typer.Option(help="K.")] = 1,
    num_epochs: Annotated[int, typer.Option(help="Most epochs of a training.")] = 6,
    patience: Annotated[int, typer.Option(help="Epochs without a better one before it stops.")] = 2,
) -> None:
    """Compare the rules that fold events into items that no training has seen."""
    dataset = Dataset.open(data)
    out.mkdir(parents=True, exist_ok=True)
    ledger = ledger or out / f"fold-in-{data.name}.jsonl"
    settings = {
        "model": "re4",
        "num_interests": num_interests,
        "num_epochs": num_epochs,
        "patience": patience,
    }
    for seed in map(int, seeds.split(",")):
        records = {int(record["seed"]): record for record in read_records(ledger)}
        if seed not in records:
            records[seed] = run_seed(dataset, out, seed, settings, events, is_newest=newest)
            lines = [json.dumps(records[each]) + "\n" for each in sorted(records)]
            with replacing(ledger) as part:
                part.write_text("".join(lines), encoding="utf-8")
    page = render_page(ledger.stem.removeprefix("fold-in-"), read_records(ledger))
    write_report(ledger.parent, {ledger.with_suffix(".md").name: page})
    print_line(page)


if __name__ == "__main__":
    typer.run(main)
